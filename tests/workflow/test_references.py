"""The kinds of reference that run nothing, and settings that stop a call, in the real workflow."""

import shutil

import pytest
from project import AGREE, Project

pytestmark = pytest.mark.slow


@pytest.fixture
def project(finished, tmp_path) -> Project:
    return finished.copy(tmp_path / "project")


def test_label_maps_that_the_user_has(project):
    """Kind existing: compared, anew when the user's map changes, kept when it vanishes; never run."""
    maps = project.folder / "maps"
    maps.mkdir()
    for scan in ("01", "02"):
        shutil.copy2(project.label_map(scan), maps / f"sub-{scan}_synthseg.nii.gz")
    project.configure(reference={"kind": "existing", "pattern": "maps/{participant_id}_synthseg.nii.gz"})
    project.run().expect("reference 01", "reference 02", "compare 01", "compare 02", "summary")
    rows = project.summary()
    assert [(row["verdict"], row["reference_kind"]) for row in rows] == [("identical", "existing")] * 2
    project.run().expect()

    shutil.copy2(project.label_map("02"), maps / "sub-01_synthseg.nii.gz")
    project.run().expect("reference 01", "compare 01", "summary")
    assert [row["verdict"] for row in project.summary()] == ["different", "identical"]

    shutil.rmtree(maps)
    project.run().expect()
    project.label_map("02", "reference").unlink()
    call = project.run().expect("summary", code=1)
    assert "no file fits sub-02" in call.output and "Traceback" not in call.output


def test_some_images_compared(project):
    project.configure(reference={"kind": "own", "runtime": "local", "subjects": 1})
    project.run().expect("summary")
    verdicts = {row["verdict"] for row in project.summary()}
    assert len(verdicts) == 2 and len(verdicts & AGREE) == 1 and "not_compared" in verdicts


def test_a_mistake_in_the_configuration_runs_nothing(project):
    project.configure(modell="synthseg1")
    call = project.run().expect(code=1)
    said = "synthseg-native: config: modell: unknown key; did you mean model or mode?"
    assert call.output.strip().splitlines()[-1] == said


def test_official_weights_that_cannot_be_fetched(project):
    """One line before the first job; the results of the other model stay."""
    shutil.copytree(project.folder / "models/synthseg1", project.folder / "models/far")
    card = project.folder / "models/far/card.yaml"
    lines = [line for line in card.read_text().splitlines() if "https://" not in line]
    lines.insert(lines.index("      urls:") + 1, "        - https://127.0.0.1:9/weights.h5")
    card.write_text("\n".join(lines) + "\n")
    project.configure(model="models/far", weights_cache="cache")
    call = project.run()
    assert call.code == 1 and "synthseg_1.0.h5" in call.output and "Traceback" not in call.output
    assert call.made == {"summary"} and {row["status"] for row in project.summary()} == {"missing"}
    project.configure()
    assert project.run("--unlock").code == 0
    project.run().expect("summary")
    assert {row["status"] for row in project.summary()} == {"ok"}
