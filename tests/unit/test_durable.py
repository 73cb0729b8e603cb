"""Plans share barriers; a plan that meets an error is alone with it."""

import os

from watchties import durable


def plan(path, data, fail=False):
    yield from durable.replace(path, data)
    if fail:
        raise OSError(28, "No space left on device", path)
    return data


def test_many_plans_are_carried_out_and_return_their_values(tmp_path):
    paths = {n: str(tmp_path / str(n)) for n in range(50)}
    results = durable.carry_out({n: plan(p, str(n).encode()) for n, p in paths.items()})
    assert results == {n: str(n).encode() for n in paths}
    assert all((tmp_path / str(n)).read_text() == str(n) for n in paths)
    assert sorted(os.listdir(tmp_path), key=int) == [str(n) for n in range(50)]


def test_one_plans_error_is_its_own(tmp_path):
    results = durable.carry_out({n: plan(str(tmp_path / n), b"x", fail=n == "bad") for n in ("good", "bad", "also good")})
    assert isinstance(results.pop("bad"), OSError)
    assert results == {"good": b"x", "also good": b"x"}


def test_a_path_that_is_gone_is_nobodys_concern(tmp_path):
    durable.sync([str(tmp_path / "gone"), str(tmp_path)])
    durable.sync([str(tmp_path / str(n)) for n in range(durable.FEW + 1)])


def test_write_new_never_follows_a_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / "pipe")
    for name in "link", "pipe":
        durable.write_new(str(tmp_path / name), b"x")
        assert (tmp_path / name).is_file() and not (tmp_path / name).is_symlink() and not (tmp_path / "target").exists()
