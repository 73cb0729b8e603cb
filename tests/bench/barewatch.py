"""The barest watcher there is: `barewatch.py DIRECTORY HOOK` starts HOOK by posix_spawn at every PENDING written there.

It is what a trigger is measured against: nothing is written down, nothing is decided, nothing is logged.
"""

import os
import sys

from inotify_simple import INotify, flags


def main(directory, hook):
    """Watch until killed."""
    env = os.environ | {"PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])}
    inotify = INotify()
    inotify.add_watch(directory, flags.CLOSE_WRITE)
    print("ready", flush=True)
    while True:
        for event in inotify.read():
            if event.name == "PENDING":
                os.waitpid(os.posix_spawn(hook, [hook], env), 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
