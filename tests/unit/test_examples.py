"""The example job recovers what is known, says in one line what is wrong with its input, and runs on old compute hosts."""

import ast
import csv
import random
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from watchties.examples import fit_oscillators, make_dyads, oscillators

HERE = Path(make_dyads.__file__).parent
PARAMETERS = make_dyads.Person._fields
HALF = {"frequency": 0.01, "eta": 0.006, "zeta": 0.01, "eta_partner": 0.01, "zeta_partner": 0.02}  # as fit_oscillators.py promises
NINE_IN_TEN = {"frequency": 0.03, "eta": 0.02, "zeta": 0.03, "eta_partner": 0.04, "zeta_partner": 0.06}


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def made(directory, **options):
    """Make data and truth in a directory through the command line; return both as rows."""
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    assert make_dyads.main([*words, "--out", str(directory / "data.csv")]) == 0
    return read(directory / "data.csv"), read(directory / "truth.csv")


def fitted(directory, *more):
    """Fit a directory's data through the command line; return the rows of the parameters."""
    places = ["--out", str(directory / "parameters.csv"), "--plot", str(directory / "curves.svg")]
    assert fit_oscillators.main([str(directory / "data.csv"), *places, *more]) == 0
    return read(directory / "parameters.csv")


def errors(found, truth, name):
    """Return how far off each person is in one parameter, in ascending order; of the frequency the fraction."""
    assert [(row["dyad"], row["sexm"]) for row in found] == [(row["dyad"], row["sexm"]) for row in truth]
    if name == "frequency":
        known = [(-float(row["eta"])) ** 0.5 / 6.283185307 for row in truth]
        return sorted(abs(float(row[name] or "inf") / value - 1) for row, value in zip(found, known))
    return sorted(abs(float(row[name]) - float(other[name])) for row, other in zip(found, truth))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_without_noise_every_parameter_is_found(tmp_path, capsys, seed):
    _, truth = made(tmp_path, dyads=10, noise=0, seed=seed)
    found = fitted(tmp_path)
    assert {name: worst for name in PARAMETERS if (worst := errors(found, truth, name)[-1]) > 1e-5} == {}
    assert all(float(row["r2"]) > 0.999999 for row in found)


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_with_noise_the_parameters_are_found_within_the_stated_bounds(tmp_path, capsys, seed):
    _, truth = made(tmp_path, dyads=20, noise=2, seed=seed)
    found = fitted(tmp_path)
    for name, bound in HALF.items():
        assert errors(found, truth, name)[len(truth) // 2] <= bound, name
    for name, bound in NINE_IN_TEN.items():
        assert errors(found, truth, name)[len(truth) * 9 // 10 - 1] <= bound, name
    noise = sorted(float(row["noise"]) for row in found)
    assert 1.7 < noise[len(noise) // 2] < 2.1  # seven parameters a person take a little of it


def test_the_program_states_the_bounds_that_are_tested():
    stated = " ".join(fit_oscillators.__doc__.split())
    for half, nine in zip(list(HALF.values())[1:], list(NINE_IN_TEN.values())[1:]):
        assert f"{half:g} ({nine:g})" in stated


def test_missed_moments_and_another_unit_of_time_and_order_change_nothing(tmp_path, capsys):
    data, truth = made(tmp_path, dyads=5, noise=0, seed=7)
    for number, row in enumerate(data):
        row["time"] = str(1000 + 250 * int(row["time"]))
        if number % 9 == 4:
            row["dial"] = "NA" if number % 2 else ""
    write(tmp_path / "data.csv", data[:100][::-1] + data[100:])
    found = sorted(fitted(tmp_path), key=lambda row: int(row["dyad"]))
    for row in found:
        row["eta"], row["zeta"] = float(row["eta"]) * 250 ** 2, float(row["zeta"]) * 250
    assert errors(found, truth, "eta")[-1] < 1e-5
    assert errors(found, truth, "zeta")[-1] < 1e-5
    assert f"600 rows, {sum(row['dial'] in ('', 'NA') for row in data)} of them without a value; 5 of 5" in capsys.readouterr().out


def test_the_couplings_are_those_of_the_partner():
    """One leads, one follows: only the follower's equation has the partner in it."""
    alone = make_dyads.Person(-0.4, -0.02, 0.0, 0.0, 50, 15, 0)
    follower = make_dyads.Person(-0.2, -0.03, 0.05, -0.04, 45, 5, 1)
    shown = make_dyads.simulate((alone, follower), 60)
    fits, _ = oscillators.fit_pair([list(enumerate(values)) for values in shown])
    assert fits[0].damping == pytest.approx(0.01, abs=1e-6) and fits[0].frequency == pytest.approx(0.100658, abs=1e-6)  # sqrt(0.4) / 2 pi
    assert fits[0].eta_partner == pytest.approx(0, abs=1e-6) and fits[0].zeta_partner == pytest.approx(0, abs=1e-6)
    assert fits[1].eta_partner == pytest.approx(0.05, abs=1e-6) and fits[1].zeta_partner == pytest.approx(-0.04, abs=1e-6)


def test_moments_may_be_far_apart_and_uneven():
    times = [t for t in range(90) if t % 7 in (0, 1, 2, 4)]
    _, shown = make_dyads.draw_pair(random.Random(6), 90)
    regular, _ = oscillators.fit_pair([list(enumerate(values)) for values in shown])
    uneven, _ = oscillators.fit_pair([[(t, values[t]) for t in times] for values in shown])
    for one, other in zip(regular, uneven):
        assert other[1:-2] == pytest.approx(one[1:-2], abs=1e-5)


def test_the_curves_that_are_drawn_go_through_the_data():
    _, shown = make_dyads.draw_pair(random.Random(5), 60)
    _, curves = oscillators.fit_pair([list(enumerate(values)) for values in shown])
    for values, curve in zip(shown, curves):
        for time, value in enumerate(values):
            nearest = min(curve, key=lambda point: abs(point[0] - time))
            assert abs(nearest[1] - value) < 2.5  # a point of the curve is at most 1/8 moment away, a dial moves 20 a moment at most


def test_the_plot_is_well_formed_whatever_the_names(tmp_path, capsys):
    data, _ = made(tmp_path, dyads=3, seed=2)
    names = {"1": 'Müller & <Söhne> "x"', "2": "\x01\x0b\ufffe", "3": "3"}
    for row in data:
        row["Dyad"] = names[row["Dyad"]]
    write(tmp_path / "data.csv", data)
    found = fitted(tmp_path, "--panels", "2")
    assert found[0]["dyad"] == names["1"]
    root = ET.parse(tmp_path / "curves.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{space}polyline")) == 4  # two curves in each of two panels
    assert len(root.findall(f"{space}circle")) == 2 * 120 + 2  # and the legend
    words = ["".join(text.itertext()) for text in root.iter(f"{space}text")]
    assert "dyad " + names["1"] in words and "dyad ???" in words
    width, height = float(root.get("width")), float(root.get("height"))
    for circle in root.iter(f"{space}circle"):
        assert 0 < float(circle.get("cx")) < width and 0 < float(circle.get("cy")) < height


def test_a_moderator_is_averaged_into_the_results(tmp_path, capsys):
    data, _ = made(tmp_path, dyads=2)
    assert [row["closeness"] for row in fitted(tmp_path, "--moderator", "closeness")] == [row["closeness"] for row in data[::60]]
    assert "closeness" not in fitted(tmp_path)[0]


@pytest.mark.parametrize("content, message", [
    ("", "the file is empty"),
    ("Dyad,time,dial,sexm\n", "there is a header and no data"),
    ("Dyad,time,sexm\n1,0,0\n", "line 1: there is no column 'dial'; there are: Dyad, time, sexm"),
    ("Dyad,time,dial,sexm\n1,0,50,0\n1,1,often,0\n", "line 3: dial is 'often', not a number"),
    ("Dyad,time,dial,sexm\n1,soon,50,0\n", "line 2: time is 'soon', not a number"),
    ("Dyad,time,dial,sexm\n1,0,inf,0\n", "line 2: dial is 'inf', not a number"),
    ("Dyad,time,dial,sexm\n1,0,50,2\n", "line 2: sexm is '2', neither 0 nor 1"),
    ("Dyad,time,dial,sexm\n1,0,50\n", "line 2: 3 fields, where the header has 4"),
    ("Dyad,time,dial,sexm\n1,0,50,0\n1,0.0,51,0\n", "line 3: dyad 1, sexm 0 has the time 0 twice"),
    ("Dyad,time,dial,sexm\n1,0,50,0\n", "no dyad could be fitted; dyad 1 is left out: 1 and 0 moments, at least 10 each are needed"),
    (b"Dyad,time,dial,sexm\n\xff\xfe,0,50,0\n", "this is not UTF-8 text"),
    (None, "No such file or directory"),
])
def test_bad_input_gets_one_line_and_a_code(tmp_path, capsys, content, message):
    path = tmp_path / "data.csv"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert fit_oscillators.main([str(path), "--out", str(tmp_path / "p.csv"), "--plot", str(tmp_path / "p.svg")]) == 1
    assert capsys.readouterr().err == f"fit_oscillators: {path}: {message}\n"
    assert not (tmp_path / "p.csv").exists()


def test_a_dyad_that_cannot_be_fitted_spoils_no_other(tmp_path, capsys):
    data, truth = made(tmp_path, dyads=3, noise=0)
    for row in data:
        if row["Dyad"] == "2" and row["sexm"] == "1":
            row["dial"] = "50"
    write(tmp_path / "data.csv", data)
    found = fitted(tmp_path)
    assert errors(found, [row for row in truth if row["dyad"] != "2"], "eta")[-1] < 1e-5
    assert "dyad 2 is left out: one of the two never changes" in capsys.readouterr().out


def test_a_spreadsheets_byte_order_mark_is_no_part_of_the_first_name(tmp_path, capsys):
    made(tmp_path, dyads=1)
    path = tmp_path / "data.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(fitted(tmp_path)) == 2


def test_the_same_seed_makes_the_same_files(tmp_path, capsys):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    assert made(tmp_path / "a", dyads=2, seed=3) == made(tmp_path / "b", dyads=2, seed=3) != made(tmp_path / "c", dyads=2, seed=4)


def test_a_job_directory_runs_by_itself_with_a_bare_python(tmp_path):
    """As on a compute host: another directory, nothing of watchties importable, an awkward name, a bare locale."""
    job = tmp_path / "it's $(a) job"
    make_dyads.make_job(job, dyads=2)
    with open(job / "data.csv", "a", encoding="utf-8") as file:
        file.write("Söhne,0,50,0,7\n")
    python = tmp_path / "bin" / "python3"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')  # -S: no site packages
    python.chmod(0o755)
    environment = {"PATH": f"{python.parent}:/usr/bin:/bin", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    ended = subprocess.run(["sh", "./command"], cwd=job, env=environment, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "2 of 3 dyads fitted" in ended.stdout and r"dyad S\xf6hne is left out" in ended.stdout
    assert len(read(job / "parameters.csv")) == 4 and ET.parse(job / "curves.svg")


@pytest.mark.parametrize("name", ["fit_oscillators.py", "oscillators.py", "make_dyads.py"])
def test_the_programs_need_python_3_6_and_its_library_only(name):
    tree = ast.parse((HERE / name).read_text(encoding="utf-8"), feature_version=(3, 6))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
    assert {module.split(".")[0] for module in imported} - {"oscillators"} <= sys.stdlib_module_names
