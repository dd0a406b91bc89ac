"""The workflow that builds releases, which runs elsewhere: what it names is in this tree, and so is what names it."""

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any, Final

import yaml  # type: ignore[import-untyped]  # its stubs are a package of their own

from tests.engines import ROOT

WORKFLOW: Final = ROOT / ".github" / "workflows" / "build.yml"
INSTALL: Final = ROOT / "hostagent" / "install.sh"
OWN: Final = ("hostagent/", "schemas/", "requirements/", ".github/")
COMMIT: Final = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}")
"""A name that nobody can move, unlike a version's."""


def workflow() -> dict[Any, Any]:
    read: dict[Any, Any] = yaml.safe_load(WORKFLOW.read_text())
    return read


def job(name: str) -> dict[str, Any]:
    found: dict[str, Any] = workflow()["jobs"][name]
    return found


def steps() -> list[dict[str, Any]]:
    return [step for one in workflow()["jobs"].values() for step in one["steps"]]


def named_paths() -> set[str]:
    """What its commands call ours, by path."""
    text = "\n".join(step.get("run", "") for step in steps())
    words = (word.removeprefix("./") for word in re.split(r"[\s\"'()|;=]+", text))
    return {word for word in words if f"{word}/".startswith(OWN)}


def programs() -> list[str]:
    return [entry["name"] for entry in job("program")["strategy"]["matrix"]["include"]]


def test_a_program_is_built_for_each_system() -> None:
    systems = {entry["os"].split("-")[0] for entry in job("program")["strategy"]["matrix"]["include"]}
    assert systems == {"ubuntu", "macos", "windows"}


def test_every_path_that_it_names_is_here() -> None:
    named = named_paths()
    assert {"hostagent/agent.spec", "hostagent/Dockerfile", "requirements/all.lock", "schemas"} <= named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_it_runs_when_any_of_them_changes() -> None:
    # YAML 1.1 reads the bare word `on` as true.
    watched = workflow()[True]["pull_request"]["paths"]
    prefixes = tuple(pattern.removesuffix("**") for pattern in watched)
    assert all(pattern.endswith("/**") or (ROOT / pattern).is_file() for pattern in watched), watched
    named = {*named_paths(), str(WORKFLOW.relative_to(ROOT))}
    assert [path for path in sorted(named) if not f"{path}/".startswith(prefixes)] == []


def test_what_it_installs_and_runs_exists() -> None:
    lock = (ROOT / "requirements" / "all.lock").read_text()
    assert re.search(r"(?m)^pyinstaller==", lock), (
        "the constraints that it makes of the lock pin no PyInstaller"
    )
    for folder in ("schemas", "hostagent"):
        assert (ROOT / folder / "pyproject.toml").is_file()
    scripts = tomllib.loads((ROOT / "hostagent" / "pyproject.toml").read_text())["project"]["scripts"]
    assert "spawn-host" in scripts
    spec = (ROOT / "hostagent" / "agent.spec").read_text()
    assert 'name="spawn-host"' in spec, "the workflow copies dist/spawn-host*"


def test_its_constraints_are_versions_alone(tmp_path: Path) -> None:
    """The same line of sed is in the Dockerfile: pip takes what it makes of the lock."""
    (line,) = {
        line.strip()
        for step in steps()
        for line in step.get("run", "").splitlines()
        if "constraints.txt" in line and line.strip().startswith("sed")
    }
    assert line.partition(" >")[0] in (ROOT / "hostagent" / "Dockerfile").read_text()
    (tmp_path / "requirements").symlink_to(ROOT / "requirements")
    subprocess.run(["sh", "-c", line], cwd=tmp_path, check=True, timeout=30)
    made = (tmp_path / "constraints.txt").read_text().splitlines()
    assert [one for one in made if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._+!-]+", one)] == []
    names = [one.partition("==")[0].lower() for one in made]
    assert "httpx" in names
    assert [name for name in set(names) if names.count(name) > 1] == [], (
        "two versions, and no marker to tell them apart"
    )


def test_install_finds_its_programs_by_these_names() -> None:
    text = INSTALL.read_text()
    told = {part for kind in ("system", "machine") for part in _words_of(text, kind)}
    for name in programs():
        rest = name.removesuffix(".exe").removeprefix("spawn-host-")
        system, _, machine = rest.partition("-")
        assert machine in told
        assert system in told or system == "windows", f"install.sh does not know {system}"
    for system in _words_of(text, "system"):
        for machine in _words_of(text, "machine"):
            assert f"spawn-host-{system}-{machine}" in programs(), (
                "install.sh would ask for what nobody builds"
            )


def _words_of(script: str, function: str) -> list[str]:
    body = script.split(f"\n{function}() {{\n")[1].split("\n}\n", maxsplit=1)[0]
    return re.findall(r"\) echo (\w+)", body)


def test_what_others_wrote_is_named_by_its_commit() -> None:
    used = [step["uses"] for step in steps() if "uses" in step]
    assert used
    assert [action for action in used if not COMMIT.fullmatch(action)] == []


def test_it_may_write_nothing_and_keeps_no_token() -> None:
    assert workflow()["permissions"] == {"contents": "read"}
    assert all("permissions" not in one for one in workflow()["jobs"].values())
    for step in steps():
        if step.get("uses", "").startswith("actions/checkout"):
            assert step["with"]["persist-credentials"] is False
