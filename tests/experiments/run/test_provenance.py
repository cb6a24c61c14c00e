"""The commit that results name."""

import subprocess
from pathlib import Path

import pytest

from experiments.run import provenance

AUTHOR = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")


def repository(folder: Path) -> str:
    """Make a repository with one commit; return the commit."""
    folder.mkdir(parents=True, exist_ok=True)
    for command in (["init", "-q"], [*AUTHOR, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", "-C", str(folder), *command], check=True)
    told = subprocess.run(
        ["git", "-C", str(folder), "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    )
    return told.stdout.strip()


@pytest.mark.parametrize("place", ["", "venv/lib/site-packages"])
def test_the_commit_is_that_of_the_product_itself(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, root = repository(tmp_path), tmp_path / place
    (root / "experiments/run").mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(root / "experiments/run/provenance.py"))
    assert provenance.commit() == (None if place else known)
