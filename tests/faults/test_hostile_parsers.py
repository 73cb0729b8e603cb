"""Everything that a stranger's text comes through, with thousands of texts: only what is documented is raised, soon."""

import contextlib
import os
import random
import re
import shlex
import signal
import subprocess
import time

import pytest
from helpers import put
from hostile_kit import FRAGMENTS, file_name, nasty, spoilt
from watchties import agent, judge, letter, manifest, meter, model, record, recordfile, relays, resources, rsyncsays, schedulers, ssh, standing
from watchties.errors import BadJobName, Rejected, Unreachable, Unsafe
from watchties.far import relay as far_relay
from watchties.hookkit import Job
from watchties.schedulers import NotNow, QueryFailed, Refused, Submitted, Unknown
from watchties.ssh import Far

SOON = 20  # seconds for one text, on any machine: a pattern that backtracks takes hours


@pytest.fixture
def texts(long, seed):
    """Return (draw, how many)."""
    return random.Random(seed), 2000 if long else 300


@contextlib.contextmanager
def soon(what):
    """Fail if something takes too long."""

    def late(*_):
        raise AssertionError(f"not done after {SOON} s: {what!r}")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SOON)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def one_plain_line(text):
    assert text.isprintable() and len(text) < 3000, repr(text)


def test_names_of_jobs(texts, figure):
    draw, count = texts
    taken = 0
    for _ in range(count):
        name = draw.choice([nasty(draw), f"{nasty(draw, 2)}/{nasty(draw, 2)}", f"{file_name(draw)}/{file_name(draw)}"])
        with soon(name):
            try:
                model.check_job_name(name)
            except BadJobName as error:
                one_plain_line(str(error))
                continue
            for part in name.split("/"):
                assert part and part[0] not in ".-" and not re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029\udc80-\udcff]", part), repr(
                    name
                )
                assert far_relay.judge(part.encode(), "*") is True, part  # the far half and ours are of one mind
            taken += 1
    figure(f"{count} names of jobs: {taken} taken, {count - taken} refused in one line")


def test_markers_and_records(texts, tmp_path, figure):
    draw, count = texts
    good = recordfile.dumps(record.Record(("web:PENDING:1",), 0, 1, "t", "b01", True, "SUBMITTED", ("web:PENDING:1",))).decode()
    for _ in range(count):
        content = spoilt(draw, f"state=DONE\nattempt=1\n{nasty(draw)}={nasty(draw)}\n").encode("utf-8", "surrogateescape")
        with soon(content):
            fields = model.parse_marker(content)
            again = model.parse_marker(model.marker_text(fields).encode())
            assert all(key in fields for key in again) and all(one_line_each(again)), content
        where = tmp_path / "job"
        put(where / ".watchties/record.json", spoilt(draw, good).encode("utf-8", "surrogateescape"))
        with soon(where), contextlib.suppress(Unsafe):
            recordfile.load(str(where))
        put(where / ".watchties/made.1", spoilt(draw, '{"p":"a","s":1,"m":2}\n').encode("utf-8", "surrogateescape"))
        with soon(where), contextlib.suppress(Unsafe):
            manifest.read(str(where / ".watchties/made.1"))
    figure(f"{count} markers, {count} records, {count} lists")


def one_line_each(fields):
    return ["\n" not in value and "\x1b" not in value for value in fields.values()]


TOML = ('cores = 4\nmemory = "8GiB"\nwalltime = "2h"\nqueue = "short"\naccount = "physics"\n', 'cores = {}\n', 'queue = "{}"\n', "queue = '''{}'''\n",
        'memory = "{}"\n', 'walltime = "{}"\n', '{} = 1\n', "[{}]\nx = 1\n", "queue = [{}]\n")  # fmt: skip


def test_job_toml(texts, tmp_path, figure):
    """What is taken reaches the schedulers' command lines: a shell runs them all, with commands that only count their words."""
    draw, count = texts
    host = {"caps": {"cores": 64, "memory": 1 << 40, "walltime": 864000.0}, "resources": {}}
    script, taken = [], 0
    for number in range(count):
        text = draw.choice(TOML)
        text = spoilt(draw, text.replace("{}", nasty(draw) if draw.random() < 0.7 else "ok-1"))
        put(tmp_path / "job.toml", text.encode("utf-8", "surrogateescape"))
        with soon(text):
            try:
                asked = resources.of_job(str(tmp_path), host, "b01")
            except Rejected as error:
                one_plain_line(str(error))
                continue
        taken += 1
        for name in schedulers.names():
            if name != "shell":
                script.append(f"( {schedulers.get(name).submit_command(Job('main', 'ann/e1', '/j', token='t'), asked, [])} )")
    env = {"PATH": os.environ["PATH"], "WT_NAME": "wt.t", "WT_SAID": "said", "WT_WRAPPER": "true", "WT_JOB": "/j"}
    said = subprocess.run(["sh", "-s"], input="capped() { shift; echo called \"$1\"; }\n" + "\n".join(script), cwd=tmp_path, env=env,
                          capture_output=True, text=True)  # fmt: skip
    lines = [line for line in said.stdout.splitlines() if line.startswith("called ")]
    assert not said.stderr and len(lines) == len(script) and {line.split()[1] for line in lines} <= {"sbatch", "bsub", "qsub"}
    assert sorted(os.listdir(tmp_path)) == ["job.toml"]
    figure(f"{count} job.toml: {taken} taken, {count - taken} rejected in one line")


def test_cpu_server(texts, tmp_path, figure):
    draw, count = texts
    for _ in range(count):
        text = spoilt(draw, nasty(draw))
        put(tmp_path / "CPU_SERVER", text.encode("utf-8", "surrogateescape"))
        with soon(text):
            entries = manifest.walk(str(tmp_path))
            fields = judge.inputs(str(tmp_path), entries, {"compute": ["b01"]})
        one_plain_line(fields["reason"])  # at the least, there is no command
    figure(f"{count} CPU_SERVER")


class Heard(relays.Listener):
    def __init__(self):
        self.announced, self.said = [], []
        tell = lambda *words: self.said.append(words)  # noqa: E731
        super().__init__(self.announced.append, tell, tell, tell, tell, tell)


def test_lines_of_a_relay(texts, figure):
    draw, count = texts
    heard = Heard()
    link = relays.Link(Far("vision"), "web", {"main": ("user_data", "*/*")}, "relay", 60.0, 20.0, heard)
    for _ in range(count):
        line = spoilt(draw, draw.choice(["main\tPENDING\tann/e1\t17", f"main\tDONE\t{nasty(draw)}\t17\ttoken", "#listed main", f"#error {nasty(draw)}",
                                         f"#bad {nasty(draw)}", f"main\t{nasty(draw)}\tann/e1\t{nasty(draw)}", nasty(draw)]))  # fmt: skip
        with soon(line):
            link._take(line.encode("utf-8", "surrogateescape"))
    for found in heard.announced:
        assert model.check_job_name(found.job) and found.tree == "main" and isinstance(found.ns, int)
    for words in heard.said:
        one_plain_line(" ".join(map(model.printable, words)))
    figure(f"{count} lines of a relay: {len(heard.announced)} announcements, {count - len(heard.announced)} others")


ANSWER = "ann/e1\texit\tcode=0\tbegan=2026-01-01T00:00:00Z\tended=2026-01-01T00:00:01Z\tseconds=1.00\tfiles=3\tbytes=5\tkilled=1\n"
REPLY = "ann/e1\tdone\n\tx\t0\n\to\tSubmitted batch job 17\n\te\twarning\n\tquery\t0\n\to\t17|RUNNING|wt.t|None\n"
KEYS = "code began ended seconds files bytes killed signal why host boot alive id state cause reason whole rebooted".split()


def test_answers_of_an_agent(texts, tmp_path, figure):
    """Also what is made of them: how a job stands, whether all has arrived, how it ended."""
    draw, count = texts
    job = Job("main", "ann/e1", str(tmp_path), token="t", fields={"id": "17"})
    for _ in range(count):
        text = spoilt(draw, draw.choice([ANSWER, REPLY, "ann/e1\tbegun\tid=17\talive=unknown\n"]))
        with soon(text):
            for _, answer in agent.parse(text):
                answer.values, answer.detail(), answer.reply()
                agent._identities(answer)
        left = {key: nasty(draw, 1) for key in KEYS if draw.random() < 0.5}
        word = draw.choice(["exit", "begun", "cancelled", "submitted", nasty(draw)])
        with soon(left):
            judge.arrived({}, {}, left)
            one_plain_line(model.one_line(judge.results(str(tmp_path), {}, left, {}).get("reason", "")))
            standing.judged(agent.Answer(word, [f"{key}={value}" for key, value in left.items()]), "17", {}, "")
            standing.seconds(left.get("began"))
        with soon(text), contextlib.suppress(Unreachable):
            ssh.unframe(
                "0123456789abcdef",
                "b01",
                spoilt(draw, f"\n=0123456789abcdef begin\n{text}\n=0123456789abcdef end 0\n"),
                nasty(draw),
            )
    assert job.id == "main:ann/e1"
    figure(f"{count} answers of an agent")


SAID = {
    "slurm": ["17\n", "17;cluster\n", "17|RUNNING|wt.t|None\n17|FAILED|wt.t|1:0\n", "sbatch: error: Batch job submission failed: Invalid partition name"],
    "lsf": ["Job <203> is submitted to queue <normal>.\n", "203^RUN^-^wt.t\n203^EXIT^1^wt.t\n", "Job <203> is not found\n"],
    "pbs": ["17.server\n", "Job Id: 17.server\n    Job_Name = wt.t\n    job_state = F\n    Exit_status = 1\n", "qstat: Unknown Job Id 17"],
    "sge": ['Your job 12 ("wt.t") has been submitted\n', "<?xml version='1.0'?><job_info><queue_info><job_list state='running'><JB_job_number>12"
            "</JB_job_number><JB_name>wt.t</JB_name><state>r</state></job_list></queue_info></job_info>", "jobnumber    12\njobname   wt.t\nfailed 0\nexit_status 0\n"],
    "shell": ["12\n", "12 1 boot\n"],
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(SAID))
def test_answers_of_a_scheduler(name, texts, figure):
    draw, count = texts
    known, found, ids = schedulers.get(name), 0, ["17", "203", "12"]
    canaries = []
    for _ in range(count):
        out, err = (spoilt(draw, draw.choice([*SAID[name], parted(draw, SAID[name]), nasty(draw)])) for _ in range(2))
        code = draw.choice([0, 0, 1, 127, 137, 255])
        with soon((out, err)):
            said = known.parse_submit(code, out, err)
            assert isinstance(said, Submitted | Refused | NotNow | Unknown), said
            if isinstance(said, Submitted):
                found += 1
                canaries += [known.query_command([said.id]), known.cancel_command(said.id, "wt.t")]
            for parse, asked in (known.parse_find, ["wt.t"]), (known.parse_query, ids):
                with contextlib.suppress(QueryFailed):
                    assert set(parse(code, out, err, asked)) <= set(asked)
            known.parse_said(err)
    for text in filter(None, canaries):  # an id goes back into command lines: none may smuggle a command in
        assert "canary" not in text.replace("'", "") or all("canary" not in word or " " in word for word in shlex.split(text)), text
    figure(f"{count} answers of {name}: {found} taken for a submission")


def parted(draw, lines):
    """Return an answer of several commands, each marked as schedulers.parts does."""
    labels = ["squeue", "sacct", "bjobs", "bhist", "qstat", "qacct", "history", nasty(draw, 1)]
    return "".join(f"{draw.choice(lines)}\nwt-part {label} {draw.choice('01')} end\n" for label in labels)


def test_what_rsync_says(texts, tmp_path, figure):
    draw, count = texts
    watching = meter.Meter(str(tmp_path))
    for _ in range(count):
        text = spoilt(draw, draw.choice([f">f+++++++++ ann/e1/{nasty(draw)}\n", "\r  1,234  50%   1.2MB/s    0:00:01 (xfr#1, to-chk=0/2)\n",
                                         f"rsync: [sender] change_dir \"{nasty(draw)}\" failed: x\n"]))  # fmt: skip
        with soon(text):
            listed = dict(rsyncsays.itemised(meter.without_progress(text)))
            watching.look(text.encode("utf-8", "surrogateescape"))
            rsyncsays.NO_ROOT.findall(text)
        assert all(len(item) == 11 for item in listed.values())
    figure(f"{count} lines of rsync")


def test_the_addresses_that_names_of_users_make(texts, figure):
    draw, count = texts
    made = 0
    for _ in range(count):
        user = nasty(draw)
        with soon(user), contextlib.suppress(Rejected):
            found = letter.configured_address("{user}@localhost", user)
            assert found.domain == "localhost" and not re.search("[\r\n]", str(found)), user
            made += 1
        with soon(user), contextlib.suppress(Rejected):
            assert not re.search("[\r\n]", str(letter.parse_address(f"{user}@{nasty(draw, 2)}")))
    figure(f"{count} users: {made} have an address, at localhost all")


def test_names_that_are_left_for_a_relay(texts, tmp_path, figure):
    """The older protocol: a real relay, with a file of names that anybody may have written."""
    draw, count = texts
    tree, scripts = tmp_path / "user_data", tmp_path / "scripts"
    put(tree / "ann/e1/PENDING")
    put(tmp_path / "outside/e1/PENDING")
    (tree / "link").symlink_to(tmp_path / "outside")
    scripts.mkdir()
    names = [nasty(draw) for _ in range(count)] + ["../outside/e1", "link/e1", "ann/e1", str(tmp_path / "outside/e1")]
    draw.shuffle(names)
    put(scripts / "relay.names", b"".join(name.encode("utf-8", "surrogateescape") + b"\n" for name in names))
    argv = ["python3", far_relay.__file__, "--nonce", "n", "--tree", f"main={tree}=*/*", "--directory", str(scripts), "--no-list"]
    with open(tmp_path / "scripts/said", "wb") as said:  # a pipe that nobody reads would hold it up
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=said, stderr=subprocess.PIPE, cwd=tmp_path)
    end = time.monotonic() + 60
    while os.path.lexists(scripts / "relay.names") or os.path.lexists(scripts / ".relay.names.taken"):
        assert time.monotonic() < end and process.poll() is None, "the names are not taken"
        time.sleep(0.05)
    _, err = process.communicate(timeout=30)
    told = [line for line in (scripts / "said").read_text().splitlines() if not line.startswith("#")]
    assert process.returncode == 0 and not err and {line.split("\t")[2] for line in told} == {"ann/e1"}, (told, err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outside", "scripts", "user_data"]
    figure(f"{len(names)} names left for a relay: the one that is a job is announced")


def test_the_generators_are_hostile(seed):
    draw = random.Random(seed)
    made = "".join(nasty(draw) for _ in range(3000))
    assert all(fragment in made for fragment in FRAGMENTS)
