"""Which scans a call is about, where results go, and what counts as current."""

import json
import os
import threading
from pathlib import Path

import nibabel
import numpy as np
import pytest

from processes import counted_calls
from synthseg_native import files, jobs
from synthseg_native.errors import SynthSegError
from synthseg_native.identity import current, stages


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(name)
    return folder


def call(**wanted):
    return jobs.plan({option: str(path) for option, path in wanted.items()})


def plan(**wanted):
    return call(**wanted).jobs


def refused(code, words, **wanted):
    with pytest.raises(SynthSegError) as caught:
        plan(**wanted)
    assert caught.value.code == code
    assert words in caught.value.message
    assert caught.value.message.count(": ") >= 2


# One image -----------------------------------------------------------------------------------------------------------


def test_an_image_and_a_file(tmp_path):
    (job,) = plan(i=tmp_path / "a.nii.gz", o=tmp_path / "x" / "b.mgz", post=tmp_path / "p.nii", vol="v.csv")
    assert job.image == tmp_path / "a.nii.gz"
    assert job.outputs == {"o": tmp_path / "x" / "b.mgz", "post": tmp_path / "p.nii"}
    assert job.sidecars == {"o": tmp_path / "x" / "b.json"}


@pytest.mark.parametrize(
    ("name", "derived"),
    [
        ("a.nii.gz", "a_synthseg.nii.gz"),
        ("a.nii", "a_synthseg.nii"),
        ("a.mgz", "a_synthseg.mgz"),
        ("sub.01.nii.gz", "sub.01_synthseg.nii.gz"),
        ("a.nii.b.NII.GZ", "a.nii.b_synthseg.nii.gz"),  # upstream would put its mark in the middle
    ],
)
def test_an_image_and_a_folder(tmp_path, name, derived):
    folder = tmp_path / "with.nii in it"
    (job,) = plan(i=folder / name, o=tmp_path / "out", resample=tmp_path / "out", picture=tmp_path)
    assert job.outputs["o"] == tmp_path / "out" / derived
    assert job.outputs["resample"] == tmp_path / "out" / derived.replace("_synthseg", "_resampled")
    assert job.outputs["picture"].name == derived.split("_synthseg")[0] + "_qc.png"


def test_what_is_no_image(tmp_path):
    touch(tmp_path, "a.dcm", "a.npz")
    refused("bad_input", "no such file or folder", i=tmp_path / "nowhere", o="o.nii")
    refused("bad_input", "not an image file", i=tmp_path / "a.dcm", o="o.nii")
    refused("bad_input", "not an image file", i=tmp_path / "a.npz", o="o.nii")


def test_results_never_overwrite_what_is_read_or_each_other(tmp_path):
    scan = touch(tmp_path, "a.nii.gz", "list.txt") / "a.nii.gz"
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.nii.gz").symlink_to(scan)
    refused("usage", "--o would overwrite a scan", i=scan, o=scan)
    refused("usage", "--o would overwrite a scan", i=scan, o=tmp_path / "folder" / ".." / "a.nii.gz")
    refused("usage", "--o would overwrite a scan", i=tmp_path / "link.nii.gz", o=scan)
    refused("usage", "--o would overwrite a scan", i=scan, o=tmp_path / "link.nii.gz")
    refused("usage", "have one place", i=scan, o=tmp_path / "b.nii", post=tmp_path / "b.nii")
    refused("usage", "have one place", i=scan, o=tmp_path / "b.nii", record=tmp_path / "b.json")
    # Two label maps in one folder get one sidecar each, so they need two names.
    refused("usage", "differ before the extension", i=scan, o=tmp_path / "b.nii", native_grid=tmp_path / "b.nii.gz")
    refused("usage", "a folder, in the place", i=scan, o=tmp_path / "b.nii", volumes_tsv=touch(tmp_path / "v.tsv"))
    (tmp_path / "list.txt").write_text(f"{scan}\n")
    (tmp_path / "o.txt").write_text(f"{tmp_path / 'b.nii'}\n")
    refused("usage", "end it in .tsv", i=tmp_path / "list.txt", o=tmp_path / "o.txt", volumes_tsv=tmp_path / "o.txt")


def test_images_of_other_formats_in_a_folder_are_said(tmp_path):
    folder = touch(tmp_path / "scans", "a.nii.gz", "b.img", "b.hdr", "c.mnc")
    assert call(i=folder, o=tmp_path / "out").remarks == [
        f"{folder}: 2 images of other formats (b.img) left out: convert to .nii.gz"
    ]


def test_tables_have_places_of_their_own(tmp_path):
    scan = touch(tmp_path, "a.nii.gz") / "a.nii.gz"
    found = call(i=scan, o=tmp_path / "b.nii", vol=tmp_path / "v", volumes_tsv=tmp_path / "v.tsv")
    assert found.tables == {"vol": tmp_path / "v.csv", "volumes_tsv": tmp_path / "v.tsv"}
    assert call(i=scan, o=tmp_path / "b.nii", vol=tmp_path / "V.CSV").tables == {"vol": tmp_path / "V.CSV"}
    refused("usage", "end it in .tsv", i=scan, o=tmp_path / "b.nii", volumes_tsv=scan)
    refused("usage", "end it in .tsv", i=scan, o=tmp_path / "b.nii", volumes_tsv=tmp_path / "v.csv")


def test_metadata_of_others_stays(tmp_path):
    touch(tmp_path, "a.mgz")
    (tmp_path / "a.json").write_text('{"EchoTime": 0.003}')  # of the scan
    refused("usage", "not of this command", i=tmp_path / "a.mgz", o=tmp_path / "a.nii.gz")
    (tmp_path / "a.json").write_text("no JSON")
    refused("usage", "not of this command", i=tmp_path / "a.mgz", o=tmp_path / "a.nii.gz")
    (tmp_path / "a.nii.gz").touch()
    assert plan(i=tmp_path / "a.mgz", o=tmp_path / "a.nii.gz"), "beside a label map it was ours, and is damaged"
    (tmp_path / "a.json").write_text('{"Type": "Discrete"}')
    assert plan(i=tmp_path / "a.mgz", o=tmp_path / "a.nii.gz")


def test_metadata_of_others_stops_its_own_scan_only(tmp_path):
    scans = touch(tmp_path / "scans", "a.nii", "b.nii", "c.nii")
    out = touch(tmp_path / "out", "b_synthseg.nii")
    (out / "a_synthseg.json").write_text('{"EchoTime": 0.003}')
    (out / "b_synthseg.json").write_text('{"Type": "Disc')
    first, second, third = plan(i=scans, o=out)
    assert "a_synthseg.json: not of this command" in first.refused.message and first.refused.code == "bad_input"
    assert second.refused is None and third.refused is None


@pytest.mark.parametrize(
    ("option", "name"), [("o", "o.hdr"), ("o", "o.gz"), ("post", "p.npz"), ("picture", "p.jpg"), ("record", "r.txt2")]
)
def test_a_name_of_another_format_is_no_folder(tmp_path, option, name):
    scan = touch(tmp_path, "a.nii.gz") / "a.nii.gz"
    refused("usage", f"not a file name for --{option}", **{"i": scan, "o": tmp_path / "o.nii", option: tmp_path / name})
    (tmp_path / name).mkdir()  # unless it is one
    assert plan(**{"i": scan, "o": tmp_path / "o.nii", option: tmp_path / name})[0].outputs[option].parent.name == name


def test_paths_that_no_file_system_takes(tmp_path):
    refused("bad_input", "too long", i=tmp_path / ("a" * 5000 + ".nii"), o=tmp_path / "o.nii")


def test_names_that_no_format_fits(tmp_path):
    folder = touch(tmp_path / "list", "o.txt", "i.txt")
    (folder / "i.txt").write_text("a.nii\n")
    (folder / "o.txt").write_text("b.png\n")
    refused("usage", "end it in .nii.gz", i=folder / "i.txt", o=folder / "o.txt")


# Folders -------------------------------------------------------------------------------------------------------------


def test_a_folder(tmp_path):
    scans = touch(tmp_path / "scans", "b.nii", "a.nii.gz", "c.mgz", "notes.txt", ".hidden.nii", "d.npz")
    found = plan(i=scans, o=tmp_path / "out", margin=tmp_path / "out", vol=tmp_path / "v.csv")
    assert [job.image.name for job in found] == ["a.nii.gz", "b.nii", "c.mgz"]
    assert [job.outputs["o"].name for job in found] == ["a_synthseg.nii.gz", "b_synthseg.nii", "c_synthseg.mgz"]
    assert [job.outputs["margin"].name for job in found] == ["a_margin.nii.gz", "b_margin.nii.gz", "c_margin.nii.gz"]
    assert all("vol" not in job.outputs for job in found)


def test_results_in_the_folder_of_the_scans_are_no_scans_of_the_next_call(tmp_path):
    scans = touch(tmp_path, "a.nii", "a_synthseg.nii", "a_posteriors.nii")
    found = call(i=scans, o=scans, post=tmp_path / "." / "")
    assert [job.image.name for job in found.jobs] == ["a.nii"]
    assert [path.name for path in found.results] == ["a_posteriors.nii", "a_synthseg.nii"]
    # Of other calls they are told by the note beside the label map; without one a scan may be named like that.
    names = ["a.nii", "a_posteriors.nii"]
    assert [job.image.name for job in plan(i=scans, o=scans)] == names
    (tmp_path / "a_synthseg.json").write_text(json.dumps({"Type": "Discrete", "SynthSegNative": {"Settings": {}}}))
    assert [job.image.name for job in plan(i=scans, o=scans)] == ["a.nii"]
    assert [job.image.name for job in plan(i=scans, o=tmp_path / "elsewhere")] == ["a.nii"]


def test_scans_that_differ_in_their_extension_alone(tmp_path):
    scans, out = touch(tmp_path / "scans", "a.nii.gz", "a.mgz", "b.nii"), tmp_path / "out"
    first, second, third = plan(i=scans, o=out, picture=out, margin=out)
    assert [job.outputs["o"].name for job in (first, second, third)] == [
        "a_synthseg.mgz", "a_synthseg.nii.gz", "b_synthseg.nii",
    ]  # fmt: skip
    assert first.sidecars == {"o": out / "a_synthseg.mgz.json"}
    assert second.outputs["picture"] == out / "a.nii.gz_qc.png"
    assert (third.sidecars["o"].name, third.outputs["margin"].name) == ("b_synthseg.json", "b_margin.nii.gz")


def test_scans_that_differ_in_the_capitals_of_their_extension_alone(tmp_path):
    scans, out = touch(tmp_path / "scans", "a.nii.gz", "a.NII.GZ", "a.Nii.gz", "b.MGZ"), tmp_path / "out"
    if len(list(scans.iterdir())) < 4:
        pytest.skip("a disk that does not tell them apart")
    found = call(i=scans, o=out, picture=out, vol=tmp_path / "v.csv")
    assert {job.image.name: job.outputs["o"].name for job in found.jobs} == {
        "a.nii.gz": "a_synthseg.nii.gz",
        "a.NII.GZ": "a.NII.GZ_synthseg.nii.gz",
        "a.Nii.gz": "a.Nii.gz_synthseg.nii.gz",
        "b.MGZ": "b_synthseg.mgz",
    }
    assert len({path for job in found.jobs for path in [*job.outputs.values(), *job.sidecars.values()]}) == 4 * 3
    assert found.remarks == [
        f"{scans / name} differs from a.nii.gz in capitals alone: its results are named {name}_synthseg.nii.gz and the "
        "like"
        for name in ("a.NII.GZ", "a.Nii.gz")
    ]


def test_folders_that_cannot_work(tmp_path):
    scans = touch(tmp_path / "scans", "a.nii.gz")
    touch(tmp_path, "file")
    refused("usage", "but --i is a folder", i=scans, o=tmp_path / "o.nii")
    refused("usage", "but --i is a folder", i=scans, o=tmp_path / "file")
    refused("usage", "but --i is none", i=scans, o=tmp_path / "o.txt")
    refused("bad_input", "no images in it", i=touch(tmp_path / "empty", "x.txt"), o=tmp_path / "out")


# Lists ---------------------------------------------------------------------------------------------------------------


def test_lists(tmp_path):
    (tmp_path / "i.txt").write_text("\nscans/a.nii\r\nscans/ü b.nii.gz\n\n", encoding="utf-8")
    (tmp_path / "o.txt").write_text("o/1.nii.gz\no/2.mgz\n")
    (tmp_path / "v.txt").write_text("1.csv\n2.csv")
    first, second = plan(i=tmp_path / "i.txt", o=tmp_path / "o.txt", vol=tmp_path / "v.txt", volumes_tsv="all.tsv")
    assert (first.image, second.image) == (Path("scans/a.nii"), Path("scans/ü b.nii.gz"))
    assert first.outputs == {"o": Path("o/1.nii.gz"), "vol": Path("1.csv")}
    assert second.outputs == {"o": Path("o/2.mgz"), "vol": Path("2.csv")}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lists_as_people_and_spreadsheets_write_them(tmp_path, monkeypatch, encoding, end):
    monkeypatch.setenv("HOME", "/home/me")
    lines = [
        "# made by hand",
        "  a.nii \t",
        '"b c.nii.gz"',
        "",
        "  ",
        "'d.nii'",
        "~/e.nii",
        "./#f.nii",
        '"g .nii"',
        "x//ü.nii",
    ]
    (tmp_path / "i.txt").write_bytes(end.join(lines).encode(encoding))
    (tmp_path / "o.txt").write_text("".join(f"{n}.nii\n" for n in range(7)))
    found = [str(job.image) for job in plan(i=tmp_path / "i.txt", o=tmp_path / "o.txt")]
    assert found == ["a.nii", "b c.nii.gz", "d.nii", "/home/me/e.nii", "#f.nii", "g .nii", "x/ü.nii"]


def test_what_a_shell_leaves_of_the_home_is_read(tmp_path, monkeypatch):
    """--i=~/a.nii reaches the command as it is."""
    monkeypatch.setenv("HOME", str(touch(tmp_path, "a.nii")))
    (job,) = plan(i="~/a.nii", o="~/out.nii")
    assert (job.image, job.outputs["o"]) == (tmp_path / "a.nii", tmp_path / "out.nii")
    refused("usage", "there is no such user", i="~nobody-here/a.nii", o="o.nii")


def test_lists_that_do_not_fit(tmp_path):
    (tmp_path / "i.txt").write_text("a.nii\nb.nii\n")
    (tmp_path / "o.txt").write_text("x.nii\n")
    (tmp_path / "same.txt").write_text("x.nii\nx.nii\n")
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    refused("usage", "1 paths for 2 images", i=tmp_path / "i.txt", o=tmp_path / "o.txt")
    refused("usage", "not a list", i=tmp_path / "i.txt", o=tmp_path / "out")
    refused("usage", "have one place", i=tmp_path / "i.txt", o=tmp_path / "same.txt")
    refused("bad_input", "no paths in it", i=tmp_path / "blank.txt", o=tmp_path / "o.txt")
    (tmp_path / "latin1.txt").write_bytes("a.nii\nä.nii\n".encode("latin-1"))
    refused("bad_input", "not UTF-8 text, maybe Latin-1 or Windows-1252 (line 2)", i=tmp_path / "latin1.txt", o="o.txt")
    (tmp_path / "zero.txt").write_bytes(b"a.nii\nb\0.nii\n")
    refused("bad_input", "holds zero bytes: give a text file", i=tmp_path / "zero.txt", o=tmp_path / "o.txt")
    refused("bad_input", "not UTF-16", i=tmp_path / "binary.txt", o=tmp_path / "o.txt")
    refused("bad_input", "No such file", i=tmp_path / "nowhere.txt", o=tmp_path / "o.txt")


# What is current -----------------------------------------------------------------------------------------------------

WANTED = {"form": stages.FORM, "engine": "llvm", "mode": "default", "crop": None, "weights": "abc"}
WANTED["code"] = {"network": "one", "grid": "two", "labels": "three"}
NOTES = {"output": {"qc": {"n": 1}}, "input": {"header_flags": ["oblique"]}, "command": []}
VOLUMES = {"csv": ["a", "1.5"], "tsv": [[2, "x"]]}


@pytest.fixture
def done(tmp_path):
    """A job whose results are there, with their note."""
    touch(tmp_path, "a.nii", "o.nii", "p.nii")
    (tmp_path / "run.json").write_text('{"status": "ok"}')
    (job,) = plan(i=tmp_path / "a.nii", o=tmp_path / "o.nii", post=tmp_path / "p.nii", record=tmp_path / "run.json")
    made = {option: path for option, path in job.outputs.items() if option != "record"}
    note = jobs.note(job, WANTED, made, VOLUMES, NOTES)
    job.sidecars["o"].write_text(json.dumps({"Type": "Discrete", "SynthSegNative": note}))
    return job


def write_note(job, sidecar):
    """A sidecar with a note that is whole, whatever it says."""
    job.sidecars["o"].write_text(json.dumps(sidecar | {"SynthSegNative": files.sealed(unsealed(sidecar))}))


def unsealed(sidecar):
    return {name: value for name, value in sidecar["SynthSegNative"].items() if name != files.SEAL}


def state(job, **changes):
    found = jobs.state(job, WANTED | changes)
    return found.word, ", ".join(found.why)


def test_results_of_the_same_call_are_current(done):
    assert state(done) == ("current", "")
    remarks = {"output": {"qc": {"n": 1}}, "input": {"header_flags": ["oblique"]}}
    assert jobs.remembered(done) == (VOLUMES, remarks), "what is odd is said by a second call too"
    assert state(done, mode="fast") == ("stale", "mode: default to fast")
    assert state(done, crop=[64, 64, 64]) == ("stale", "crop: none to [64, 64, 64]")
    assert state(done, threads=3) == ("current", ""), "llvm gives the same bytes for any number"
    assert state(done, code=WANTED["code"] | {"grid": "other"}) == ("stale", "the code changed (grid)")
    assert jobs.state(done, None) == current.State("stale"), "without weights nothing can be said"


def test_another_image_is_stale(done):
    note = json.loads(done.sidecars["o"].read_text())
    note["SynthSegNative"]["Identity"] |= {"content": "b", "code": WANTED["code"] | {"read": "four"}}
    write_note(done, note)
    of_it = {"code": note["SynthSegNative"]["Identity"]["code"]}
    assert state(done, content="b", **of_it) == ("current", "")
    assert state(done, content="c", **of_it) == ("stale", "the image changed")


@pytest.mark.parametrize(("name", "word"), [("o.nii", "edited"), ("p.nii", "stale")])
def test_changed_files_are_not_current(done, name, word):
    """A label map may be changed by hand, and is then the user's; other results are made again."""
    nibabel.save(nibabel.Nifti1Image(np.ones((2, 2, 2), np.uint8), np.eye(4)), done.image.with_name(name))
    said = "o.nii was changed since it was made" if word == "edited" else "p.nii is not as it was made"
    assert state(done) == (word, said)
    assert state(done, mode="fast")[0] == word
    assert jobs.state(done, None).word == word


@pytest.mark.parametrize("name", ["o.nii", "p.nii", "run.json", "o.json"])
def test_missing_files_are_not_current(done, name):
    done.image.with_name(name).unlink()
    assert state(done)[0] == "missing"


def test_a_result_of_another_call_does_not_count(done):
    # p.nii and run.json lie there, but the last call at these settings made the label map alone.
    note = json.loads(done.sidecars["o"].read_text())
    del note["SynthSegNative"]["ResultsSHA256"]["post"]
    write_note(done, note)
    assert state(done) == ("stale", "p.nii is of another call")
    del done.outputs["post"]
    assert state(done)[0] == "current"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"SynthSegNative": 3}', '{"SynthSegNative": {"Settings": null}}'])
def test_a_sidecar_that_is_no_note_of_ours(done, text):
    done.sidecars["o"].write_text(text)
    assert state(done)[0] in ("missing", "stale")


@pytest.mark.parametrize("part", ["ResultsSHA256", "Identity", "Input"])
@pytest.mark.parametrize("value", [None, 3, [], "text"])
def test_a_damaged_note_is_not_current(done, part, value):
    note = json.loads(done.sidecars["o"].read_text())
    note["SynthSegNative"][part] = value
    done.sidecars["o"].write_text(json.dumps(note))
    assert state(done) == ("stale", "o.json is not as it was made")
    write_note(done, note)
    assert state(done)[0] in ("missing", "stale")


def test_numbers_of_a_note_that_was_edited_go_into_no_table(done):
    note = json.loads(done.sidecars["o"].read_text())
    note["SynthSegNative"]["Volumes"]["csv"][1] = "2.5"
    done.sidecars["o"].write_text(json.dumps(note))
    assert state(done) == ("stale", "o.json is not as it was made")
    nibabel.save(nibabel.Nifti1Image(np.ones((2, 2, 2), np.uint8), np.eye(4)), done.outputs["o"])
    assert state(done)[0] == "edited", "and a label map that was changed by hand stays all the same"


def test_a_failed_run_in_between_is_not_current(done):
    done.outputs["record"].write_text('{"status": "failed"}')
    assert state(done) == ("stale", "the last run failed")


def test_the_same_scan_under_another_name_is_another(done):
    other = done.image.with_name("b.nii")
    other.write_bytes(done.image.read_bytes())
    found = jobs.state(jobs.Job(other, done.outputs), WANTED)
    assert str(found) == "stale: made from another scan, a.nii"


def test_touching_a_file_changes_nothing(done):
    done.image.touch()
    done.outputs["o"].touch()
    assert state(done)[0] == "current"


@pytest.mark.slow
def test_many_scans_beside_their_results_are_planned_at_once(tmp_path):
    """Whether an image is a result is looked up, not searched for: 4000 scans took 11 s."""
    took = []
    for number in (40, 400):
        folder = tmp_path / str(number)
        folder.mkdir()
        names = [f"{scan:04}.nii" for scan in range(number)]
        touch(folder, *names, *(name.replace(".nii", "_synthseg.nii") for name in names))
        with counted_calls() as calls:
            found = call(i=folder, o=folder)
        assert (len(found.jobs), len(found.results)) == (number, number)
        took.append(calls.number)
    assert took[1] < 12 * took[0], took


@pytest.mark.parametrize("kind", ["a pipe of the shell's", "a named pipe"])
def test_a_list_may_be_a_pipe_which_is_read_once(tmp_path, kind):
    touch(tmp_path, "a.nii", "b.nii")
    (tmp_path / "o.txt").write_text(f"{tmp_path}/x.nii\n{tmp_path}/y.nii\n")
    text = f"{tmp_path}/a.nii\n{tmp_path}/b.nii\n"
    if kind == "a named pipe":
        os.mkfifo(tmp_path / "fifo")
        place, writer = tmp_path / "fifo", threading.Thread(target=(tmp_path / "fifo").write_text, args=(text,))
        writer.start()
    else:
        reader, end = os.pipe()
        os.write(end, text.encode())
        os.close(end)
        place = f"/dev/fd/{reader}"
    assert [job.image.name for job in plan(i=place, o=tmp_path / "o.txt")] == ["a.nii", "b.nii"]


def test_a_zero_byte_in_a_list_is_one_line(tmp_path):
    (tmp_path / "i.txt").write_bytes(b"a.nii\0b.nii\n")
    refused("bad_input", "holds zero bytes", i=tmp_path / "i.txt", o=tmp_path / "o.txt")
