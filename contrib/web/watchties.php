<?php
/**
 * Gives jobs to watchties, from a web application in PHP 7.4 or newer. Copy this file; it needs no extension.
 *
 *     require 'watchties.php';
 *     watchties_hand_over('/home/www-data/compties/user_data', "$user/$experiment");              // run it
 *     watchties_hand_over('/home/www-data/compties/user_data', "$user/$experiment", 'CANCEL');    // stop it
 *     watchties_state('/home/www-data/compties/user_data', "$user/$experiment");                  // ['DONE', ['exit' => '0', ...]]
 *
 * All files of the job must be there, whole, before: nothing is read until PENDING stands in its directory.
 * Each raises InvalidArgumentException for a name that no job may have, RuntimeException where something cannot be written.
 */

declare(strict_types=1);

/** Throws unless the name is USER/EXPERIMENT and its directory stands in the tree, with no link on the way; returns the directory. */
function watchties_directory(string $tree, string $job): string
{
    $parts = explode('/', $job);
    foreach ($parts as $part) {
        $fine = $part !== '' && $part[0] !== '.' && $part[0] !== '-' && strlen($part) <= 255;
        if (count($parts) !== 2 || !$fine || !preg_match('/^[^\p{Cc}\x{2028}\x{2029}]+\z/u', $part)) {
            throw new InvalidArgumentException('not a name of a job (USER/EXPERIMENT): ' . json_encode($job, JSON_INVALID_UTF8_SUBSTITUTE));
        }
    }
    if (is_link("$tree/$parts[0]") || is_link("$tree/$job") || !is_dir("$tree/$job")) {
        throw new InvalidArgumentException("there is no directory $tree/$job, or it is a symbolic link");
    }
    return "$tree/$job";
}

/**
 * Makes a request: PENDING (run it) or CANCEL (stop it), by rename, so that nobody sees it half-way.
 *
 * $older: the directory of relay.names (compties/scripts), to tell a relay as the older programs did; not needed where it hears the
 * file system.
 */
function watchties_hand_over(string $tree, string $job, string $marker = 'PENDING', ?string $older = null): void
{
    if ($marker !== 'PENDING' && $marker !== 'CANCEL') {
        throw new InvalidArgumentException("$marker is not a request");
    }
    $directory = watchties_directory($tree, $job);
    $new = $directory . '/.watchties.request.' . bin2hex(random_bytes(8));
    if (@file_put_contents($new, '') === false || !@rename($new, "$directory/$marker")) {
        @unlink($new);
        throw new RuntimeException("cannot write $directory/$marker: " . (error_get_last()['message'] ?? ''));
    }
    if ($older !== null && $marker === 'PENDING') {
        watchties_tell_older($older, $job);
    }
}

/** Appends the name to relay.names under the lock that the relay takes too, then signals a relay that lives. */
function watchties_tell_older(string $scripts, string $job): void
{
    $lock = @fopen("$scripts/relay.lock", 'c');
    if ($lock === false || !flock($lock, LOCK_EX)) {
        throw new RuntimeException("cannot lock $scripts/relay.lock");
    }
    try {
        if (@file_put_contents("$scripts/relay.names", "$job\n", FILE_APPEND) !== strlen($job) + 1) {
            throw new RuntimeException("cannot write $scripts/relay.names");
        }
        watchties_signal($scripts);
    } finally {
        fclose($lock);
    }
}

/** Sends signal 30 to the process in relay.pid if it holds the lock on that file: a stale id may be another program's by now. */
function watchties_signal(string $scripts): void
{
    $pid = @fopen("$scripts/relay.pid", 'r');
    if ($pid === false) {
        return; // the next relay finds the name when it starts
    }
    $lives = !flock($pid, LOCK_SH | LOCK_NB, $refused) && $refused;
    $number = trim((string) fgets($pid));
    fclose($pid);
    if ($lives && preg_match('/^[0-9]+$/', $number)) {
        // posix_kill where the extension is loaded; the shell's own kill where it is not
        function_exists('posix_kill') ? posix_kill((int) $number, 30) : exec("kill -30 $number");
    }
}

/** Returns [state, fields] of a job: PENDING, SUBMITTED, FAILED, DONE or '' (nothing asked for yet), and the marker's key=value lines. */
function watchties_state(string $tree, string $job): array
{
    $directory = watchties_directory($tree, $job);
    foreach (['PENDING', 'SUBMITTED', 'FAILED', 'DONE'] as $state) {
        if (is_file("$directory/$state")) {
            $fields = [];
            foreach (@file("$directory/$state", FILE_IGNORE_NEW_LINES) ?: [] as $line) {
                if (preg_match('/^([a-z][a-z0-9_]*)=(.*)$/', $line, $found)) {
                    $fields[$found[1]] = $found[2];
                }
            }
            return [$state, $fields];
        }
    }
    return ['', []];
}
