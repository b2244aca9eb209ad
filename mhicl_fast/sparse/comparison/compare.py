"""The whole comparison: measured, written into a folder, drawn, and told as a table."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...plots import save_png
from ...sweep.results import write_table
from ...train.folder import FolderError, make_locked, read_json, versions, write_json
from . import figures
from .config import ComparisonConfig
from .curves import points_of_curves, risk_curves
from .regimes import cells_of_map, format_map, map_rows
from .table import format_table, settings_of_table, table_rows
from .theory import format_theory, parts_of_theory, theory_rows


def compare(config: ComparisonConfig, path: Path) -> dict[str, Any]:
    """Measure everything that a configuration asks for, and write it into a new folder.

    The folder then holds comparison.json (the configuration, with versions), table.csv, results.json (configuration,
    table, curves, map, theory: what is returned) and figures/*.png. All but the versions is a pure function of the
    configuration.

    A folder in which the same comparison was interrupted is as a new one. Raises FolderError where another is not
    empty, StorageError where a file cannot be written.
    """
    content = {"format": 1, "study": config.study, "versions": versions(), "config": config.to_dict()}
    os.close(make_locked(path, lambda: _refuse_occupied(path, config), ("figures",), "comparison.json", content))
    total = settings_of_table(config) + points_of_curves(config) + cells_of_map(config) + parts_of_theory(config)
    with tqdm(total=total, unit=" settings", disable=None, dynamic_ncols=True) as bar:
        results: dict[str, Any] = {
            "config": config.to_dict(),
            "table": table_rows(config, bar.update),
            "curves": risk_curves(config, bar.update),
            "map": map_rows(config, bar.update),
            "theory": theory_rows(config, bar.update),
        }
    write_table(path, results["table"])
    write_json(path / "results.json", results)
    for name, draw in figures.FIGURES.items():
        save_png(draw(results), path / "figures" / f"{name}.png")
    return results


def comparison_table(config: ComparisonConfig, results: Mapping[str, Any]) -> str:
    """The table, the counts of the maps and how far theory is from them, as aligned lines for a person to read."""
    return "\n\n".join(
        [
            format_table(results["table"], config.dim_x, config.context_length),
            format_map(config, results["map"]),
            format_theory(config, results["theory"], results["map"]),
        ]
    )


def _refuse_occupied(path: Path, config: ComparisonConfig) -> None:
    found = sorted(entry.name for entry in path.iterdir())
    if "comparison.json" in found and (read_json(path / "comparison.json") or {}).get("config") == config.to_dict():
        if "results.json" in found:
            raise FolderError(f"{path} holds this very comparison already; its page: mhicl sparse report {path}")
    elif found:
        several = f"{', '.join(found[:3])}{', …' if len(found) > 3 else ''}"
        raise FolderError(f"{path} is not empty (it has {several}); choose another folder")
