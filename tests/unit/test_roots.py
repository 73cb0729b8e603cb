"""roots.py: a tree is known by its mark, and an empty mount point is none."""

import os
import shutil

import pytest

from watchties import roots
from watchties.model import JobId
from watchties.roots import Roots, TreeGone


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "tree").mkdir()
    return tmp_path / "tree"


def begun(tmp_path):
    found = Roots(str(tmp_path / "state"), {"main": str(tmp_path / "tree")})
    found.begin()
    return found


def make(path):
    os.mkdir(path)
    return "made"
    yield


def mark(tree):
    return (tree / roots.MARK).read_text() if (tree / roots.MARK).exists() else ""


def test_a_tree_is_given_its_mark_with_its_first_job_and_an_older_one_at_once(tmp_path, tree):
    begun(tmp_path)
    assert not mark(tree), "it may be a mount point whose disk comes later"
    assert begun(tmp_path).carry_out({JobId("main", "ann"): make(tree / "ann")}) == {JobId("main", "ann"): "made"}
    first = mark(tree)
    (tree / roots.MARK).unlink()
    shutil.rmtree(tmp_path / "state")
    assert not begun(tmp_path).gone and mark(tree) not in ("", first)


@pytest.mark.parametrize("how", ["renamed away", "empty", "another"])
def test_what_is_not_the_tree_is_neither_believed_nor_written(tmp_path, tree, how):
    (tree / "ann").mkdir()
    found, job = begun(tmp_path), JobId("main", "eve")
    tree.rename(tmp_path / "away")
    if how != "renamed away":
        tree.mkdir()
    if how == "another":
        (tree / roots.MARK).write_text("of another\n")
    for again in found, begun(tmp_path):
        assert not again.look("main") and "mount" in again.gone["main"] and str(tree) in again.gone["main"]
        assert isinstance(again.carry_out({job: make(tree / "eve")})[job], TreeGone) and not (tree / "eve").exists()
        with pytest.raises(TreeGone):
            again.has(job, "x")
        shutil.rmtree(tree, ignore_errors=True)
        (tmp_path / "away").rename(tree)
        assert again.look("main") and not again.look("main") and not again.gone
        tree.rename(tmp_path / "away")


def test_a_tree_that_goes_while_it_is_written_counts_as_not_written(tmp_path, tree):
    (tree / "ann").mkdir()
    found, job = begun(tmp_path), JobId("main", "eve")

    def plan():
        tree.rename(tmp_path / "away")
        tree.mkdir()
        return "written"
        yield

    assert isinstance(found.carry_out({job: plan()})[job], TreeGone) and found.gone


def test_an_administrator_who_removes_what_is_remembered_has_what_is_there_taken_for_the_tree(tmp_path, tree):
    (tree / "ann").mkdir()
    found = begun(tmp_path)
    (tree / roots.MARK).unlink()
    assert not found.look("main") and found.gone["main"].endswith(f"remove {tmp_path}/state/trees/main")
    (tmp_path / "state/trees/main").unlink()
    assert found.look("main") and mark(tree)


def test_a_state_directory_that_is_deleted_meanwhile_makes_no_empty_mount_point_a_tree(tmp_path, tree):
    (tree / "ann").mkdir()
    found = begun(tmp_path)
    shutil.rmtree(tmp_path / "state")
    tree.rename(tmp_path / "away")
    tree.mkdir()
    assert not found.look("main") and found.gone
    tree.rmdir()
    (tmp_path / "away").rename(tree)
    assert found.look("main") and (tmp_path / "state/trees/main").read_text().split()[0] == mark(tree).strip()


def test_a_tree_that_is_configured_elsewhere_now_begins_there(tmp_path, tree):
    (tree / "ann").mkdir()
    begun(tmp_path)
    (tmp_path / "other").mkdir()
    found = Roots(str(tmp_path / "state"), {"main": str(tmp_path / "other")})
    found.begin()
    assert not found.gone
