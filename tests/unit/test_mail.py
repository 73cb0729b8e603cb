"""What a letter says, whom it goes to, and that nobody can slip a header or an address into it."""

import datetime
import email
import email.policy
import fcntl
import html.parser
import os
import time
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watchties import letter as letters
from watchties import letterforms, mail, shell
from watchties.errors import Rejected

NOW = datetime.datetime(2024, 5, 6, 7, 8, 9, tzinfo=datetime.UTC)
KEYS = "server port starttls user password_file sendmail folder from to email_file cc admin link templates".split()
TEXT = st.text(max_size=40)


def config(**keys):
    table = dict.fromkeys(KEYS) | {"from": "TIES <ties@lab.example>", "to": "{user}@uni.example"} | keys
    return {
        "mail": table,
        "host": {"vision": {"root": "compties"}, "b01": {"root": "compties"}},
        "tree": {"t": {"root": "/m", "web": "vision", "path": None}},
    }


def job(name="alice/Exp 1", marker="DONE", attempt=2, token="a1b2c3", dir="/m/alice/Exp 1", ended=None, **fields):
    return types.SimpleNamespace(
        tree="t", job=name, dir=dir, place="mirror", marker=marker, attempt=attempt, token=token, host="", fields=fields, ended=ended or {}
    )


def failed(**fields):
    return job(marker="FAILED", host="b01", **fields)


def compose(job, err_tail=(), own=None, **keys):
    conf = config(**keys)
    form, _ = letterforms.load(conf["mail"]["templates"], job.marker)
    return mail.compose(conf, job, form, NOW, err_tail, own)


def read(job, *args, **keys):
    """Return (message as its reader has it, its text)."""
    message = email.message_from_bytes(compose(job, *args, **keys)[0].data(), policy=email.policy.default)
    return message, message.get_body(("plain",)).get_content().replace("\r\n", "\n")


def test_done_tells_state_experiment_host_time_and_link():
    message, text = read(
        job(host="b01", exit="0", seconds="7384.2", ended_at="x"), link="https://x.example/e.php?t={tree}&u={user}&exp={experiment}"
    )
    assert message["Subject"] == "DONE: Exp 1 on b01 (exit code 0, ran 2 h 3 min)"
    assert message["To"] == "alice@uni.example" and message["From"] == "TIES <ties@lab.example>"
    for line in "State:       DONE", "Experiment:  Exp 1", "Host:        b01", "Exit code:   0", "Ran for:     2 h 3 min":
        assert line in text.splitlines()
    assert "https://x.example/e.php?t=t&u=alice&exp=Exp%201" in text
    assert "on vision: compties/user_data/alice/Exp 1" in text and "/m/alice/Exp 1" in text
    for absent in "Cause:", "Reason:", "remote_ties_run.err", "Ended:", "$":
        assert absent not in text


def test_nothing_in_a_name_changes_the_link():
    _, text = read(job("al&u=eve/a b/c?x=#é{user}"), link="https://x.example/{tree}/e?u={user}&exp={experiment}")
    assert "https://x.example/t/e?u=al%26u%3Deve&exp=a%20b%2Fc%3Fx%3D%23%C3%A9%7Buser%7D\n" in text


def test_failed_tells_cause_reason_error_lines_and_what_to_do():
    message, text = read(failed(exit="3", cause="exit", reason="exit code 3"), ["Traceback", "\x1b[31mKeyError: 'dial'\x1b[0m"])
    assert message["Subject"] == "FAILED: Exp 1 on b01 (exit, exit code 3)"
    for line in "Cause:       exit", "Reason:      exit code 3", "Exit code:   3", "  Traceback", "  ?[31mKeyError: 'dial'?[0m":
        assert line in text.splitlines()
    assert "touch 'compties/user_data/alice/Exp 1/PENDING'   (on vision)" in text


def test_exit_code_zero_is_told_also_when_it_is_a_number():
    assert "Exit code:   0" in read(failed(exit=0, cause="success", reason="fit.csv is missing"))[1]


@pytest.mark.parametrize("cause", ["exit", "rejected", "lost", "cancelled", "infrastructure", "success", "memory", "time", "node"])
def test_each_cause_is_told_in_words_of_its_own(cause):
    _, text = read(failed(cause=cause))
    mine = [other for other, (what, todo) in letters.CAUSE_WORDS.items() if what in text and f"What to do: {todo}" in text]
    assert mine == [cause]


def test_a_cause_nobody_knows_yet_is_told_as_it_is():
    _, text = read(failed(cause="moonlight"))
    assert "Cause:       moonlight" in text and letters.OTHER_CAUSE[0] in text


def test_unfinished_steps_are_told():
    assert "Not everything could be finished yet (push)" in read(job(ended={"push": "gave up", "report": "done"}))[1]
    assert "Not everything could be finished yet (push)" in read(job(ended={"push@DONE": "gave up", "report@SUBMITTED": "gave up"}))[1]
    assert "Not everything" not in read(job(ended={"push": "done", "mail": "gave up", "report@SUBMITTED": "gave up"}))[1]


def test_headers_and_the_same_message_id_for_the_same_attempt():
    first, again, other = read(job())[0], read(failed())[0], read(job(token="zz"))[0]
    assert first["Message-ID"] == again["Message-ID"] == "<watchties.a1b2c3@lab.example>" != other["Message-ID"]
    assert first["Date"].datetime == NOW and first["Auto-Submitted"] == "auto-generated"
    assert first.get_content_type() == "multipart/alternative"
    assert [part.get_content_type() for part in first.iter_parts()] == ["text/plain", "text/html"]  # the best comes last
    assert {part.get_content_charset() for part in first.iter_parts()} == {"utf-8"}
    assert compose(job())[0].data() == compose(job())[0].data()


def test_a_name_in_any_script_arrives_in_subject_and_text():
    message, text = read(job("алиса/Опыт «é» 試"), to={"алиса": "a@b.example"})
    assert "Опыт «é» 試" in message["Subject"] and "Experiment:  Опыт «é» 試" in text


@given(name=TEXT, reason=TEXT, token=TEXT, host=TEXT, line=TEXT, subject=TEXT)
def test_nothing_anybody_writes_becomes_a_header(name, reason, token, host, line, subject):
    nasty = "\r\nBcc: eve@evil.example\n\nX"
    told = failed(reason=reason + nasty, exit="1" + nasty, cause="exit" + nasty)
    told.job, told.token, told.fields["host"] = f"al/{name}{nasty}", token + nasty, host + nasty
    told.ended = {"push" + nasty: "failed"}
    notice = mail.compose_notice(config(admin="root@lab.example")["mail"], subject + nasty, nasty, NOW, line)
    for letter in compose(told, [line + nasty])[0], notice:
        message = email.message_from_bytes(letter.data(), policy=email.policy.default)
        assert message.defects == [] and message["Bcc"] is None
        assert set(message.keys()) - {"Content-Transfer-Encoding"} == {
            *("From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "Content-Type", "MIME-Version")
        }
        assert len(list(message.walk())) == (1 if letter is notice else 3)
        assert max(map(len, letter.data().split(b"\r\n"))) <= 998 and letter.data().isascii()


@pytest.mark.parametrize(
    "user, address",
    [
        ("alice", "alice@uni.example"),
        ("o'brien", "o'brien@uni.example"),
        ("an na", '"an na"@uni.example'),
        ('o"b\\', '"o\\"b\\\\"@uni.example'),
        ("$(id);,<x>", '"$(id);,<x>"@uni.example'),
        ("eve@evil.example", '"eve@evil.example"@uni.example'),
        ("jose\u0301", "josé@uni.example"),
        ("пётр", "пётр@uni.example"),
    ],
)
def test_a_user_in_the_pattern_stays_one_local_part(user, address):
    letter, _ = compose(job(f"{user}/E"))
    assert letter.to == (address,)
    message = email.message_from_bytes(letter.data(), policy=email.policy.default.clone(utf8=True))
    (parsed,) = message["To"].addresses
    assert parsed.domain == "uni.example" and letter.international == (not address.isascii())


@given(user=st.text(min_size=1, max_size=70))
def test_whatever_the_user_is_called_the_domain_is_ours(user):
    try:
        found = letters.configured_address("{user}@uni.example", user)
    except Rejected:
        return
    message = email.message.EmailMessage(policy=email.policy.SMTP.clone(utf8=True))
    message["To"] = found
    back = email.message_from_bytes(message.as_bytes(), policy=email.policy.default.clone(utf8=True))["To"].addresses
    assert [a.domain for a in back] == ["uni.example"] and "\n" not in found.addr_spec


def test_a_pattern_of_the_user_alone_takes_only_an_address():
    assert letters.configured_address("{user}", "al@uni.example").addr_spec == "al@uni.example"
    with pytest.raises(Rejected, match="not a mail address"):
        letters.configured_address("{user}", "al, eve@evil.example")


def test_a_table_knows_its_users_and_the_others_get_no_mail():
    table = {"alice": "a@b.example"}
    assert compose(job(), to=table)[0].to == ("a@b.example",)
    nobody, notes = compose(job("bob/E"), to=table)
    assert nobody is None and "no address for this user" in notes[0]
    assert compose(job("bob/E"), to=table, cc=["admin@lab.example"])[0].to == ("admin@lab.example",)


def test_copies_go_where_the_configuration_says():
    letter, _ = compose(job(), cc=["Ada <ada@lab.example>", "b@lab.example"])
    assert letter.cc == ("ada@lab.example", "b@lab.example") and str(letter.message["Cc"]) == "Ada <ada@lab.example>, b@lab.example"


@pytest.mark.parametrize(
    "own",
    [
        *("", "eve", "a@b@c.example", "a@b.example, eve@evil.example", "a@b.example eve@evil.example", "a@b.example\neve@evil.example"),
        *("a@b.example\nBcc: eve@evil.example", "Eve <eve@evil.example>", "<eve@evil.example>", '"a b"@b.example', "-f@b.example"),
        *("a@-b.example", "a@b..example", "a@b.example.", ".a@b.example", "a@", "@b.example", "a@b.example\x00", "x" * 65 + "@b.example"),
    ],
)
def test_a_jobs_own_address_that_is_none_falls_back_with_a_line(own):
    letter, notes = compose(job(), own=own, email_file="email.txt")
    assert letter.to == ("alice@uni.example",)
    assert len(notes) == 1 and notes[0].startswith("email.txt is passed over") and "\n" not in notes[0]


@pytest.mark.parametrize("own", ["eve.o+x@b.example\n", " josé@b.example ", "a@bücher.example\r\n"])
def test_a_jobs_own_address_is_used(own):
    letter, notes = compose(job(), own=own, email_file="email.txt")
    assert letter.to == (own.strip().replace("bücher", "xn--bcher-kva"),) and notes == ()


def test_a_template_of_the_site_comes_first_and_dollars_of_users_stay(tmp_path):
    (tmp_path / "done.txt").write_text("Subject: fertig: $experiment\n\nHallo $user, 5 $$ Ümlaut\nHost: $host\n")
    message, text = read(job("al/$user E", reason="${x}"), templates=str(tmp_path))
    assert message["Subject"] == "fertig: $user E" and text == "Hallo al, 5 $ Ümlaut\n"
    assert read(failed(), templates=str(tmp_path))[0]["Subject"].startswith("FAILED")


@pytest.mark.parametrize("name", ["done.txt", "done.html"])
@pytest.mark.parametrize("content", [b"$nonsense\n\nx", b"x\n\n$nonsense", b"x\n\n$ 5", b"\xff"])
def test_a_bad_template_is_named_and_no_mail_is_lost_for_it(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    (problem,) = letterforms.problems(str(tmp_path))
    assert name in problem and "\n" not in problem
    assert "Your experiment Exp 1 is done." in read(job(), templates=str(tmp_path))[1]


def test_a_directory_without_any_template_is_told(tmp_path):
    for where in tmp_path, tmp_path / "mistyped":
        (problem,) = letterforms.problems(str(where))
        assert str(where) in problem and "done.txt" in problem
    (tmp_path / "done.txt").write_text("Subject: done\n\n$experiment\n")
    assert letterforms.problems(str(tmp_path)) == []


def test_the_placeholders_of_templates_are_the_facts_of_letters():
    assert set(letters.facts_of(config(), job())) == letterforms.PLACEHOLDERS


def test_a_page_of_the_site_goes_with_its_text_and_a_text_alone_stays_alone(tmp_path):
    (tmp_path / "done.html").write_text("<p>Hallo $user</p>\n")
    assert page_of(read(job(), templates=str(tmp_path))[0]) == "<p>Hallo alice</p>\n"
    (tmp_path / "done.txt").write_text("Subject: x\n\ny\n")
    assert read(job(), templates=str(tmp_path))[0].get_body(("html",)).get_content().startswith("<p>Hallo")
    (tmp_path / "done.html").unlink()
    assert read(job(), templates=str(tmp_path))[0].get_content_type() == "text/plain"


def page_of(message):
    return message.get_body(("html",)).get_content().replace("\r\n", "\n")


class Page(html.parser.HTMLParser):
    """Gathers tags, attributes and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.text = [], set(), [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for key, value in attrs if key == "href"]
        assert not [key for key, _ in attrs if key.startswith("on") or key == "src"]
        self.open += [tag] if tag not in ("meta", "br") else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_says_what_the_text_says():
    told = failed(exit="3", cause="memory", reason="killed at 4 GB", seconds="7384", began="2024-05-06T07:08:09+00:00")
    message, text = read(told, ["Traceback", "KeyError: <dial>"], link="https://x.example/?exp={experiment}")
    page = Page(page_of(message))
    assert page.open == [] and page.links == ["https://x.example/?exp=Exp%201"]
    for words in ("has failed", *letters.CAUSE_WORDS["memory"], "killed at 4 GB", "KeyError: <dial>", "2 h 3 min"):
        assert words in text and words in page.text, words
    assert "2024-05-06T07:08:09" in page.text and "on vision: compties/user_data/alice/Exp 1" in page.text


@given(text=TEXT, line=TEXT)
def test_nothing_anybody_writes_becomes_html(text, line):
    nasty = f"{text}</pre><script>alert(1)</script><img src=x onerror=alert(1)>\"'&lt; onload=\""
    told = failed(reason=nasty, cause=nasty, exit=nasty)
    told.job = "al/" + nasty.replace("/", "|")
    page = Page(page_of(read(told, [nasty, line], link="https://x.example/?e={experiment}&u={user}")[0]))
    assert not page.open and not page.tags & {"script", "img"} and len(page.links) == 1 and "<script>alert(1)<|script>" in page.text


def test_a_letter_is_cheap():
    form, _ = letterforms.load(None, "DONE")
    conf, told = config(link="https://x.example/{experiment}"), job(host="b01", exit="0")
    began = time.process_time()
    for _ in range(100):
        mail.compose(conf, told, form, NOW)[0].data()
    assert (time.process_time() - began) / 100 < 0.01  # a millisecond or two on a slow machine


@pytest.mark.parametrize(
    "seconds, words",
    [(0.2, "0.2 s"), (60, "1 min"), (3661, "1 h 1 min"), ("86400.0", "1 d"), (None, ""), ("x", ""), ("nan", ""), ("inf", "")],
)
def test_durations(seconds, words):
    assert letters.duration(seconds) == words


def deliver(jobs, **keys):
    return [outcome for _, outcome in mail.deliver(config(**keys)["mail"], [compose(j, **keys)[0] for j in jobs])]


def test_folder_one_file_a_mail_and_a_repeat_overwrites(tmp_path):
    folder = str(tmp_path / "new" / "mail")
    nasty = job("../../x/o'b $(id)\x1b", token="../t")
    outcomes = deliver([job(), job(), job("b/é"), nasty], folder=folder, to="all@b.example")
    assert [o.outcome for o in outcomes] == ["done"] * 4
    names = sorted(os.listdir(folder))
    assert names[1:] == ["alice.Exp_1.2.a1b2c3.eml", "b.é.2.a1b2c3.eml"] and len(names) == 3 and names[0].startswith("__.___x_o_b___id__")
    assert email.message_from_bytes((tmp_path / "new/mail/alice.Exp_1.2.a1b2c3.eml").read_bytes())["To"] == "all@b.example"


def test_what_a_killed_sender_left_half_written_goes_with_the_next_letter_and_what_another_is_writing_stays(tmp_path):
    for name in ".gone.eml.new", ".written.eml.new", ".gone.eml", ".of_a_person.new":
        (tmp_path / name).write_text("half")
    with open(tmp_path / ".written.eml.new", "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert [o.outcome for o in deliver([job()], folder=str(tmp_path))] == ["done"]
    assert sorted(os.listdir(tmp_path)) == [".gone.eml", ".of_a_person.new", ".written.eml.new", "alice.Exp_1.2.a1b2c3.eml"]


def test_a_long_name_in_a_folder_is_cut(tmp_path):
    long = job("ü" * 100 + "/" + "é" * 120, token="t" * 60)
    assert deliver([long], folder=str(tmp_path), to={"ü" * 100: "a@b.example"})[0].outcome == "done"


def test_a_folder_that_cannot_be_written_is_tried_again(tmp_path):
    (tmp_path / "file").write_text("")
    (outcome,) = deliver([job()], folder=str(tmp_path / "file" / "sub"))
    assert outcome.outcome == "retry" and "cannot write the mail" in outcome.reason


def test_no_mail_set_up_is_done_with_a_line():
    (outcome,) = deliver([job()])
    assert outcome.outcome == "done" and outcome.reason == mail.NOT_SET_UP


SENDMAIL = """#!/bin/sh
for last; do :; done
printf '%s\\n' "$@" >"$0.$last.argv"
cat >"$0.$last.data"
case $last in b@*) exit 75 ;; c@*) echo "no such user: $last" >&2; exit 67 ;; esac
"""


def test_sendmail_gets_the_message_and_its_exit_code_counts(tmp_path):
    (program := tmp_path / "my sendmail").write_text(SENDMAIL)
    program.chmod(0o755)
    letters = [compose(job(f"{user}/E"))[0] for user in "abc"]
    told = mail.deliver(config(sendmail=f"'{program}' -v")["mail"], letters, shell.run)
    outcomes = [outcome for _, outcome in told]
    assert [o.outcome for o in outcomes] == ["done", "retry", "failed"] and "ended with 67: no such user" in outcomes[2].reason
    assert (tmp_path / "my sendmail.a@uni.example.argv").read_text().split() == "-v -i -f ties@lab.example a@uni.example".split()
    assert (tmp_path / "my sendmail.a@uni.example.data").read_bytes() == letters[0].data()


def test_a_sendmail_that_is_not_there_is_told():
    told = mail.deliver(config(sendmail="/nowhere/sendmail")["mail"], [compose(job())[0]], shell.run)
    assert [(o.outcome, "/nowhere/sendmail" in o.reason) for _, o in told] == [("retry", True)]


def test_error_lines_are_the_last_and_bounded(tmp_path):
    (tmp_path / "remote_ties_run.err").write_bytes(b"".join(b"line %d\n" % n for n in range(5000)) + b"\xff end\n\n")
    tail = mail.error_tail(tmp_path)
    assert len(tail) == mail.TAIL_LINES and tail[-1] == "\ufffd end" and tail[-2] == "line 4999"


def test_nothing_is_read_through_a_link_a_pipe_or_outside_the_job(tmp_path):
    inside, secret = tmp_path / "job", tmp_path / "secret"
    (inside / "sub").mkdir(parents=True)
    secret.write_text("root@x.example")
    (inside / "link").symlink_to(secret)
    (inside / "up").symlink_to(tmp_path)
    (inside / "sub" / "mine").write_text("a@b.example")
    os.mkfifo(inside / "pipe")
    for name in "link", "up/secret", "../secret", str(secret), "pipe", "sub", "missing", "", "a\0b":
        assert mail.read_end(inside, name, 100) is None, name
    assert mail.read_end(inside, "sub/mine", 100) == b"a@b.example"
    assert mail.own_address({"email_file": "sub/mine"}, inside) == "a@b.example" and mail.own_address({"email_file": None}, inside) is None


def test_notice_goes_to_the_administrator_under_one_id():
    keys = config(admin=["root@lab.example", "ops@lab.example"])["mail"]
    first, again, other = (mail.compose_notice(keys, "b01 is down", "since 5 min\n", NOW, key) for key in ("k", "k", "l"))
    assert first.to == ("root@lab.example", "ops@lab.example") and first.message["Subject"] == "b01 is down"
    assert first.message["Message-ID"] == again.message["Message-ID"] != other.message["Message-ID"]
    assert mail.compose_notice(config()["mail"], "s", "t", NOW, "k") is None
