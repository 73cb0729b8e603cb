"""What is sent to a host, and how its answer is told from anything else it prints."""

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watchties import ssh
from watchties.errors import Unreachable


def run(far, command):
    nonce = ssh.new_nonce()
    done = subprocess.run(ssh.argv(far, ssh.frame(nonce, far.root, command)), capture_output=True, text=True)
    return ssh.unframe(nonce, far.name, done.stdout, done.stderr)


def test_output_and_exit_code_come_back(tmp_path):
    assert run(ssh.Far("here", root=str(tmp_path)), "pwd; echo two; exit 3") == (f"{tmp_path}\ntwo\n", 3)


def test_a_root_that_is_not_there_is_the_hosts_fault_and_no_answer(tmp_path):
    with pytest.raises(Unreachable, match="its compties directory is not"):
        run(ssh.Far("here", root=str(tmp_path / "gone")), "echo yes")


def test_a_hostile_root_is_only_a_name(tmp_path):
    root = tmp_path / "a'b \"c\" $(touch x); d"
    root.mkdir()
    assert run(ssh.Far("here", root=str(root)), "echo fine") == ("fine\n", 0)
    assert not list(root.iterdir())


BANNERS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\x85\u2028\u2029"), max_size=200)


@given(before=BANNERS, after=BANNERS, payload=BANNERS, code=st.integers(0, 255).filter(lambda c: c != ssh.NO_ROOT))
def test_banners_are_never_answers(before, after, payload, code):
    nonce = ssh.new_nonce()
    out = f"{before}\n={nonce} begin\n{payload}\n={nonce} end {code}\n{after}"
    assert ssh.unframe(nonce, "b01", out) == (payload, code)


@given(st.data())
def test_an_answer_that_was_cut_is_refused(data):
    nonce = ssh.new_nonce()
    whole = f"\n={nonce} begin\nall is well\n\n={nonce} end 10\n"
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(Unreachable):
        ssh.unframe(nonce, "b01", whole[:cut], "Connection reset by peer")


def test_the_last_words_of_ssh_are_the_reason():
    with pytest.raises(Unreachable, match="host b01 did not answer: Permission denied"):
        ssh.unframe("ab", "b01", "", "banner\nPermission denied (publickey).")


def test_options_are_single_words():
    config = {"home": "/home/w", "host": {"b01": {"ssh": "me@b01", "root": "compties", "ssh_options": ["Port=2222", "-i '/a b/key'"]}}}
    far = ssh.from_config(config, "b01")
    words = ssh.argv(far, "true")
    assert words[0] == "ssh" and "Port=2222" in words and "/a b/key" in words and words[words.index("--") + 1] == "me@b01"
