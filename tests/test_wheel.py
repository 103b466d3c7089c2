"""The wheel that `python -m build` makes has all modules and complete metadata, and works on its own.

`.ci/wheel` installs it into an empty environment, with what it requires, and compresses the example there.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email.message import Message
from email.parser import Parser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("hmc_onnx", "calib", "passes")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made from a copy of what git tracks or would track, as building writes into the folder."""
    source = tmp_path_factory.mktemp("source")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in names:
        if (name.startswith(PACKAGES) or "/" not in name) and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", source / "dist", source]
    made = subprocess.run(build, capture_output=True, text=True, cwd=source)
    assert made.returncode == 0, made.stderr
    (found,) = (source / "dist").iterdir()
    return found


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def test_all_modules_data_files_and_type_markers_are_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        found = {n for n in archive.namelist() if ".dist-info/" not in n}
    modules = {p.relative_to(ROOT).as_posix() for package in PACKAGES for p in (ROOT / package).rglob("*.py")}
    templates = {p.relative_to(ROOT).as_posix() for p in (ROOT / "hmc_onnx/reporting/template").iterdir()}
    others = {"hmc_onnx/olive/package_config.json", *(f"{package}/py.typed" for package in PACKAGES)}
    assert found == modules | templates | others


def test_the_metadata_are_complete(metadata: Message) -> None:
    assert metadata["Name"] == "hmc-onnx"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert str(metadata.get_payload()).startswith("# hmc_onnx")
    for field in ("Summary", "Keywords", "Classifier", "Project-URL", "Requires-Python", "License-File"):
        assert metadata[field], field


def test_neither_wheel_of_onnxruntime_is_a_dependency_but_each_is_an_extra(metadata: Message) -> None:
    runtimes = {r for r in metadata.get_all("Requires-Dist") if r.startswith("onnxruntime") and "dev" not in r}
    assert {tuple(re.split(r"[>;]", r)[::2]) for r in runtimes} == {
        ("onnxruntime-gpu", ' extra == "gpu"'),
        ("onnxruntime", ' extra == "cpu"'),
    }


def test_what_is_imported_is_required(metadata: Message) -> None:
    """Each library that a module imports is a requirement, or one of an extra for users."""
    requirements = [r for r in metadata.get_all("Requires-Dist") if not r.endswith('extra == "dev"')]
    required = {re.match(r"[A-Za-z0-9._-]+", r)[0].lower() for r in requirements}
    providers = packages_distributions() | {"olive": ["olive-ai"]}  # Olive is not installed where tests run
    missing = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
                for top in {n.partition(".")[0] for n in names} - set(sys.stdlib_module_names) - set(PACKAGES):
                    owners = {d.lower().replace("_", "-") for d in providers.get(top, [top])}
                    if not owners & required:
                        missing.add((path.name, top))
    assert missing == set()


@pytest.mark.long  # `.ci/wheel` asks for more in every run of CI
def test_the_wheel_works_where_nothing_else_of_the_project_is(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own, which sees the libraries of this one, and not the project installed in it."""
    environment = tmp_path / "environment"
    venv.create(environment, symlinks=True)
    schemes = {"base": str(environment), "platbase": str(environment)}
    folder = Path(sysconfig.get_path("purelib", scheme="venv" if sys.version_info >= (3, 11) else None, vars=schemes))
    (folder / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    scripts = environment / ("Scripts" if sys.platform == "win32" else "bin")
    python = scripts / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index"]
    clean = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    options = {"env": clean, "cwd": tmp_path, "capture_output": True, "text": True}
    installed = subprocess.run([*install, "--ignore-installed", wheel], **options)
    assert installed.returncode == 0, installed.stderr
    extras = ".finetune", "olive.hmc_pass", "__main__"  # which need torch, Olive, and arguments
    everything = "import hmc_onnx, calib, passes, pkgutil, importlib\n" + "\n".join(
        f"for m in pkgutil.walk_packages({p}.__path__, '{p}.'):\n"
        f"    if not any(part in m.name for part in {extras}): importlib.import_module(m.name)\n"
        f"print({p}.__file__)"
        for p in PACKAGES
    )
    imported = subprocess.run([python, "-c", everything], **options)
    assert imported.returncode == 0, imported.stderr
    assert [Path(line).parents[1] for line in imported.stdout.splitlines()] == [folder] * 3
    model = ROOT / "examples" / "resnet20-cifar10.onnx"
    inspected = subprocess.run([scripts / "hmc-onnx", "inspect", model], **options)
    assert inspected.returncode == 0, inspected.stderr
    assert "MACs" in inspected.stdout
