"""Packages of which only data files are read: found in their own folder first, otherwise where others are installed."""

import importlib.metadata
import shlex

import pytest

from tinymem import packaged


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder as `pip install --target` makes it, with a package that pins an old one."""
    (tmp_path / "plays").mkdir()
    details = tmp_path / "plays-7.1.dist-info"
    details.mkdir()
    (details / "METADATA").write_text("Metadata-Version: 2.1\nName: plays\nVersion: 7.1\nRequires-Dist: numpy<1\n")
    monkeypatch.setattr(packaged, "FOLDER", tmp_path)
    return tmp_path


def test_its_own_folder_comes_first(folder):
    assert packaged.folder_of("plays") == folder / "plays" and packaged.version_of("plays") == "7.1"
    assert packaged.folder_of("torch") not in (None, folder / "torch")  # as other packages are installed
    (folder / "torch").mkdir()
    assert packaged.folder_of("torch") == folder / "torch"
    assert packaged.version_of("pytest") == pytest.__version__


def test_what_is_missing(folder):
    assert packaged.folder_of("no_such_package") is None
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        packaged.version_of("no-such-package")
    words = shlex.split(packaged.install("plays==7.1"))
    assert words[:2] == ["pip", "install"] and words[-3:] == ["--target", str(folder), "plays==7.1"]
