"""Letters against a real SMTP server: down, refusing for now, refusing one user for good, closing, with TLS and a login."""

import base64
import datetime
import email
import email.policy
import json
import os
import shlex
import shutil
import socket
import ssl
import subprocess
import sys
import types
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

from watchties import letterforms, mail, retry
from watchties.errors import Transient

KEYS = "server port starttls user password_file sendmail folder from to email_file cc admin link templates".split()
NOW = datetime.datetime(2024, 5, 6, 7, 8, 9, tzinfo=datetime.UTC)


class Inbox:
    """Takes mail; answers RCPT, MAIL and DATA as `replies` (address or "DATA" -> reply) says; counts connections."""

    def __init__(self, replies=(), close_after=None):
        self.replies, self.close_after, self.got, self.connections, self.asked = dict(replies), close_after, [], 0, []

    async def handle_EHLO(self, server, session, envelope, hostname, responses):
        self.connections += 1
        session.host_name, session.letters = hostname, 0
        return responses

    async def handle_MAIL(self, server, session, envelope, address, options):
        if self.close_after is not None and session.letters >= self.close_after:
            server.transport.close()
            return "421 enough for one connection"
        session.letters += 1
        if reply := self.replies.get("MAIL"):
            return reply
        envelope.mail_from = address
        return "250 OK"

    async def handle_RCPT(self, server, session, envelope, address, options):
        self.asked.append(address)
        if reply := self.replies.get(address):
            return reply
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        if reply := self.replies.get("DATA"):
            return reply
        self.got.append((list(envelope.rcpt_tos), email.message_from_bytes(envelope.content, policy=email.policy.default)))
        return "250 taken"

    def users(self):
        return [to[0].partition("@")[0] for to, _ in self.got]


@pytest.fixture
def serve():
    """Start servers on free ports of 127.0.0.1; stop them all at the end."""
    running = []

    def start(inbox, **options):
        controller = Controller(inbox, hostname="127.0.0.1", port=free_port(), **options)
        controller.start()
        running.append(controller)
        return controller.port

    yield start
    for controller in running:
        controller.stop()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def config(port, **keys):
    table = dict.fromkeys(KEYS) | {"server": "localhost", "port": port, "from": "ties@lab.example", "to": "{user}@uni.example"} | keys
    return {"mail": table, "host": {}, "tree": {}}


def form(text):
    return letterforms.Form(*letterforms._parsed(text, True), ())


def deliver(port, users, again=lambda call: call(), **keys):
    conf, letters = config(port, **keys), []
    for user in users:
        keys = {"tree": "t", "dir": "/m", "marker": "DONE", "attempt": 1, "host": "b01", "fields": {}, "ended": {}}
        job = types.SimpleNamespace(job=f"{user}/E", token=user, **keys)
        letters.append(mail.compose(conf, job, form("Subject: é $experiment\n\nHallo $user\n.\n.. dots\n"), NOW)[0])
    return [outcome for _, outcome in mail.deliver(conf["mail"], letters, again=again)]


def ways(outcomes):
    return [outcome.outcome for outcome in outcomes]


def test_many_letters_one_connection(serve):
    inbox = Inbox()
    users = [f"u{n}" for n in range(30)]
    assert ways(deliver(serve(inbox), users, cc=["ada@lab.example"])) == ["done"] * 30
    assert inbox.users() == users and inbox.connections == 1
    to, message = inbox.got[0]
    assert to == ["u0@uni.example", "ada@lab.example"] and message["Cc"] == "ada@lab.example"
    assert message["Subject"] == "é E" and message.get_content().splitlines() == ["Hallo u0", ".", ".. dots"]
    assert message["Message-ID"] == "<watchties.u0@lab.example>"


def test_names_with_spaces_quotes_and_dollars_arrive(serve):
    inbox = Inbox()
    assert ways(deliver(serve(inbox), ["an na", "o'b", 'q"x', "$(id);"])) == ["done"] * 4
    assert [to[0] for to, _ in inbox.got] == ['"an na"@uni.example', "o'b@uni.example", '"q\\"x"@uni.example', '"$(id);"@uni.example']


def test_unicode_needs_smtputf8_of_the_server(serve):
    inbox = Inbox()
    assert ways(deliver(serve(inbox, enable_SMTPUTF8=True), ["пётр", "al"])) == ["done"] * 2 and inbox.users() == ["пётр", "al"]
    first, second = deliver(serve(other := Inbox(), enable_SMTPUTF8=False), ["пётр", "al"])
    assert first.outcome == "failed" and "SMTPUTF8" in first.reason and second.outcome == "done" and other.users() == ["al"]


def test_a_server_that_is_down_is_tried_for_one_letter_only():
    tries = []

    def again(call):
        for _ in range(3):
            tries.append(1)
            try:
                return call()
            except Transient as e:
                last = e
        raise last

    port = free_port()
    outcomes = deliver(port, ["a", "b", "c"], again)
    assert ways(outcomes) == ["retry"] * 3 and len(tries) == 3
    assert all(o.reason == f"mail server localhost:{port}: Connection refused" for o in outcomes)


@pytest.mark.parametrize("reply, way", [("450 greylisted, later", "retry"), ("452 full", "retry"), ("550 no such user here", "failed")])
def test_one_recipients_refusal_is_its_own(serve, reply, way):
    inbox = Inbox({"bad@uni.example": reply})
    outcomes = deliver(serve(inbox), ["a", "bad", "c"])
    assert ways(outcomes) == ["done", way, "done"] and inbox.users() == ["a", "c"] and inbox.connections == 1
    assert outcomes[1].reason.endswith(f"refuses bad@uni.example: {reply}")


@pytest.mark.parametrize("where", ["MAIL", "DATA"])
@pytest.mark.parametrize("reply, way", [("451 scanner is down", "retry"), ("554 spam", "failed")])
def test_refusals_of_sender_and_content(serve, where, reply, way):
    outcomes = deliver(serve(inbox := Inbox({where: reply})), ["a", "b"])
    assert ways(outcomes) == [way] * 2 and all(o.reason.endswith(reply) for o in outcomes) and inbox.got == []


def test_a_refused_copy_does_not_stop_the_letter_and_a_refused_user_gets_no_copy_sent(serve):
    inbox = Inbox({"ada@lab.example": "550 gone", "bad@uni.example": "550 unknown"})
    good, bad = deliver(serve(inbox), ["good", "bad"], cc=["ada@lab.example", "bob@lab.example"])
    assert good.outcome == "done" and "no copy sent" in good.reason and "550 gone" in good.reason and bad.outcome == "failed"
    assert [to for to, _ in inbox.got] == [["good@uni.example", "bob@lab.example"]]


def test_a_copy_that_must_wait_makes_the_letter_wait_so_that_nobody_gets_it_twice(serve):
    inbox = Inbox({"ada@lab.example": "450 later"})
    assert ways(deliver(serve(inbox), ["a", "b"], cc="ada@lab.example")) == ["retry"] * 2 and inbox.got == []


def test_a_server_that_closes_after_two_letters_gets_them_all(serve):
    inbox = Inbox(close_after=2)
    users = ["a", "b", "c", "d", "e"]
    assert ways(deliver(serve(inbox), users)) == ["done"] * 5 and inbox.users() == users and inbox.connections == 3


def test_a_server_that_closes_at_once_costs_one_connection(serve):
    inbox = Inbox(close_after=0)
    assert ways(deliver(serve(inbox), ["a", "b", "c"])) == ["retry"] * 3 and inbox.connections == 1


def test_a_server_that_is_about_to_stop_is_asked_no_more(serve):
    inbox = Inbox({"a@uni.example": "421 shutting down"})
    assert ways(deliver(serve(inbox), ["a", "b", "c"])) == ["retry"] * 3 and inbox.asked == ["a@uni.example"]


def test_each_outcome_is_told_before_the_next_letter_is_sent(serve):
    inbox, conf = Inbox(), None
    conf = config(serve(inbox))
    job = types.SimpleNamespace(tree="t", job="a/E", dir="/m", marker="DONE", attempt=1, token="x", host="", fields={}, ended={})
    letter = mail.compose(conf, job, form("Subject: x\n\ny"), NOW)[0]
    told = mail.deliver(conf["mail"], [letter] * 3)
    for sent in 1, 2, 3:
        next(told)
        assert len(inbox.got) == sent
    told.close()


# TLS and login


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    path = tmp_path_factory.mktemp("tls")
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", path / "key", "-out", path / "cert"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *files, *names]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path / "cert", path / "key")
    return context, str(path / "cert")


def authenticator(server, session, envelope, mechanism, auth_data):
    good = isinstance(auth_data, LoginPassword) and (auth_data.login, auth_data.password) == (b"ties", b"s3cret")
    return AuthResult(success=good, handled=False)


@pytest.fixture
def secure(serve, certificate):
    inbox = Inbox()
    options = {"authenticator": authenticator, "auth_required": True, "auth_require_tls": True, "require_starttls": True}
    return inbox, serve(inbox, tls_context=certificate[0], **options)


def login(tmp_path, password="s3cret\n", mode=0o600):
    (path := tmp_path / "password").write_text(password)
    path.chmod(mode)
    return {"starttls": True, "user": "ties", "password_file": str(path)}


def test_starttls_and_login(secure, certificate, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", certificate[1])
    inbox, port = secure
    assert ways(deliver(port, ["a", "b"], **login(tmp_path))) == ["done"] * 2 and inbox.users() == ["a", "b"]


def test_a_certificate_nobody_vouches_for_gets_no_mail(secure, tmp_path):
    inbox, port = secure
    (outcome,) = deliver(port, ["a"], **login(tmp_path))
    assert outcome.outcome == "retry" and "certificate" in outcome.reason.lower() and inbox.got == []


def test_a_server_without_starttls_gets_no_mail_in_the_clear(serve):
    (outcome,) = deliver(serve(inbox := Inbox()), ["a"], starttls=True)
    assert outcome.outcome == "retry" and "STARTTLS" in outcome.reason and inbox.got == []


def test_a_wrong_password_waits_for_the_right_one(secure, certificate, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", certificate[1])
    (outcome,) = deliver(secure[1], ["a"], **login(tmp_path, "wrong"))
    assert outcome.outcome == "retry" and "535" in outcome.reason and "wrong" not in outcome.reason


def test_a_password_that_everybody_may_read_is_refused(secure, tmp_path):
    (outcome,) = deliver(secure[1], ["a"], **login(tmp_path, mode=0o604))
    assert outcome.outcome == "retry" and "chmod 600" in outcome.reason  # put right, and the letter goes


# The hooks, as programs of their own

HOOKS = Path(__file__).parents[2] / "hooks"


def run_hook(tmp_path, name, config, jobs=(), notice=None):
    """Run a hook as the daemon does; return (exit code, what it said of each job, its stdout, its stderr)."""
    files = {key: tmp_path / key for key in ("config", "jobs", "result", "notice")}
    files["config"].write_text(json.dumps(config | {"rule": [], "daemon": {}, "home": str(tmp_path)}))
    files["jobs"].write_text("".join(json.dumps(job) + "\n" for job in jobs))
    if notice is not None and not files["notice"].exists():
        files["notice"].write_text(notice)
    (tmp_path / "result").unlink(missing_ok=True)
    env = os.environ | {f"WATCHTIES_{key.upper()}": str(path) for key, path in files.items()}
    env |= {"WATCHTIES_RULE": name, "WATCHTIES_HOST": "", "WATCHTIES_RUN": "r1"}
    ended = subprocess.run([sys.executable, HOOKS / name], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    lines = files["result"].read_text().splitlines() if files["result"].exists() else []
    told = {row["job"]: (row["outcome"], row["reason"]) for row in map(json.loads, lines)}
    return ended.returncode, told, ended.stdout, ended.stderr


def told_job(tmp_path, name, marker="DONE", **fields):
    (tmp_path / name).mkdir(parents=True, exist_ok=True)
    keys = {"tree": "t", "job": name, "dir": str(tmp_path / name), "place": "mirror", "marker": marker, "attempt": 1}
    return keys | {"token": name.replace("/", ""), "fields": {"host": "b01", **fields}, "ended": {"push": "done"}}


def test_the_mail_hook_settles_each_job_by_itself(serve, tmp_path):
    inbox = Inbox({"bad@uni.example": "550 no such user here"})
    keys = {"cause": "exit", "exit": "3", "reason": "exit code 3"}
    jobs = [told_job(tmp_path, f"{user}/E", "FAILED", **keys) for user in ("al", "bad", "n..n", "o b")]
    (tmp_path / "al/E/remote_ties_run.err").write_text("KeyError: dial\n")
    (tmp_path / "al/E/email").write_text("ada@own.example\n")
    (tmp_path / "o b/E/email").write_text("eve@evil.example\nBcc: x@y.example")
    code, told, out, err = run_hook(tmp_path, "mail", config(serve(inbox), email_file="email"), jobs)
    assert (code, err) == (0, "") and {job: way for job, (way, _) in told.items()} == {
        "al/E": "done", "bad/E": "failed", "n..n/E": "failed", "o b/E": "done"
    }  # fmt: skip
    assert told["bad/E"][1].endswith("550 no such user here") and "not a mail address" in told["n..n/E"][1]
    assert [to for to, _ in inbox.got] == [["ada@own.example"], ['"o b"@uni.example']] and inbox.connections == 1
    assert "KeyError: dial" in inbox.got[0][1].get_body(("plain",)).get_content() and "t:o b/E: email is passed over" in out


def test_the_mail_hook_with_no_server_there_says_again_for_all(tmp_path):
    code, told, out, err = run_hook(tmp_path, "mail", config(port := free_port()), [told_job(tmp_path, f"{user}/E") for user in "ab"])
    assert (code, err) == (0, "") and set(told.values()) == {("retry", f"mail server localhost:{port}: Connection refused")}
    assert out.count("again in") == retry.TRIES - 1


def test_no_password_is_written_anywhere_whether_it_is_right_or_wrong(secure, certificate, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", certificate[1])
    inbox, port = secure
    for password, way in ("s3cret", "done"), ("wr0ngly-kept", "retry"):
        keys = login(tmp_path, f"{password}\n")
        code, told, out, err = run_hook(tmp_path, "mail", config(port, **keys), [told_job(tmp_path, "al/E")])
        assert code == 0 and told["al/E"][0] == way, (told, out, err)
        files = [path for path in tmp_path.rglob("*") if path.is_file() and path != Path(keys["password_file"])]
        written = b"".join(path.read_bytes() for path in files) + f"{out}{err}{told}".encode()
        assert password.encode() not in written and base64.b64encode(password.encode()) not in written
    assert inbox.users() == ["al"]


def msmtp(tmp_path, port, **more):
    """Return a configuration whose letters go by msmtp, and what it is to be called with."""
    program = shutil.which("msmtp")
    assert program, "msmtp is missing: run contrib/setup.sh"
    own = tmp_path / "msmtprc"
    own.write_text(f"account default\nhost localhost\nport {port}\nauth off\ntls off\n")
    own.chmod(0o600)
    return config(None, server=None, sendmail=f"{program} -C {shlex.quote(str(own))}", **more)


def test_a_sendmail_command_carries_the_same_letter_and_asks_again_while_the_server_is_down(serve, tmp_path):
    """By msmtp, a sendmail program that has no queue: what it cannot hand over it refuses, with sysexits.h's codes."""
    inbox = Inbox({"bad@uni.example": "550 no such user here", "full@uni.example": "450 later"})
    jobs = [told_job(tmp_path, f"{user}/E") for user in ("al", "bad", "full")]
    code, told, _, err = run_hook(tmp_path, "mail", msmtp(tmp_path, serve(inbox), cc="boss@uni.example", admin="root@lab.example"), jobs)
    assert (code, err) == (0, "") and told["al/E"] == ("done", "")
    ((to, letter),) = inbox.got
    assert to == ["al@uni.example", "boss@uni.example"] and letter["Message-ID"] == "<watchties.alE@lab.example>"
    assert [part.get_content_type() for part in letter.iter_parts()] == ["text/plain", "text/html"]
    assert told["bad/E"][0] == "failed" and "550 no such user here" in told["bad/E"][1]
    assert told["full/E"][0] == "retry" and "450 later" in told["full/E"][1]
    down = msmtp(tmp_path, free_port(), admin="root@lab.example")
    code, told, _, err = run_hook(tmp_path, "mail", down, jobs)
    assert (code, err) == (0, "") and {way for way, _ in told.values()} == {"retry"} and "Connection refused" in told["al/E"][1]
    code, _, _, err = run_hook(tmp_path, "notice", down, notice="b01 is down\n\nsince 5 min\n")
    assert code == 75 and "Connection refused" in err.splitlines()[-1], err
    assert run_hook(tmp_path, "notice", msmtp(tmp_path, serve(inbox), admin="root@lab.example"), notice="")[0] == 0
    assert inbox.got[-1][0] == ["root@lab.example"] and inbox.got[-1][1]["Subject"] == "b01 is down"


def test_the_mail_hook_without_mail_is_done(tmp_path):
    code, told, _, _ = run_hook(tmp_path, "mail", config(None, server=None), [told_job(tmp_path, "al/E")])
    assert code == 0 and told == {"al/E": ("done", mail.NOT_SET_UP)}


def test_the_notice_hook(serve, tmp_path):
    inbox, keys = Inbox(), {"admin": "Root <root@lab.example>"}
    port = serve(inbox)
    for _ in range(2):
        assert run_hook(tmp_path, "notice", config(port, **keys), notice="b01 is down\n\nsince 5 min\n")[0] == 0
    (to, first), (_, again) = inbox.got
    assert to == ["root@lab.example"] and first["Subject"] == "b01 is down" and first.get_content().strip() == "since 5 min"
    assert first["Message-ID"] == again["Message-ID"]
    inbox.replies = {"root@lab.example": "450 later"}
    code, _, _, err = run_hook(tmp_path, "notice", config(port, **keys), notice="")
    assert code == 75 and err.splitlines()[-1].endswith("450 later")
    inbox.replies = {"root@lab.example": "550 gone"}
    code, _, _, err = run_hook(tmp_path, "notice", config(port, **keys), notice="")
    assert code == 1 and err.splitlines()[-1].endswith("550 gone")
    code, _, out, _ = run_hook(tmp_path, "notice", config(port), notice="")
    assert code == 0 and "nobody is told: b01 is down" in out
