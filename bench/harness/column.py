"""A column of the table in docs/benchmarks.md: what one machine measured, in `bench/results/<its CPU or GPU>.json`."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench/results"
PAGE = ROOT / "docs/benchmarks.md"
BEGIN, END = "<!-- `python -m bench --table` writes what follows -->", "<!-- end of the table -->"

# What a column has: each op both ways in its most usual form, the most telling first. Two cores do the first half in 20
# minutes; the same command goes on with what is missing.
CASES = (
    r"call overhead (token_logprob|group_advantage|sample_step|moe_experts|linear_logprob|policy_loss)",
    r"token_logprob.* forward\+backward",
    r"linear_(logprob|policy_loss) .*forward\+backward",
    r"sample_step",
    r"policy_loss (gspo )?forward\+backward",
    r"divergence (forward|reverse|jsd) forward\+backward",
    r"interval (MLP|CNN)",
    r"moe_experts .*forward",
    r"linear_divergence",
    r"^(grouped_mm|glu|moe_combine|moe_gather|moe_route) .*forward\+backward",
    r"moe_plan|group_advantage|apply_schedule|gae|topk_divergence",
    r"interval_softmax forward\+backward|interval_batch_norm|interval_relu|margin_cross_entropy forward\+backward",
    r"interval_activation gelu forward\+backward|interval weights midpoint forward\+backward",
    r"divergence .*forward\+backward|policy_loss .*forward\+backward|interval_activation .*forward\+backward",
)


def ordered(names: list[str]) -> list[str]:
    """Of these cases the ones of a column, in its order."""
    found = [name for pattern in CASES for name in names if re.search(pattern, name)]
    return list(dict.fromkeys(found))


def path_of(environment: dict) -> Path:
    """AMD EPYC 7763 64-Core Processor -> amd-epyc-7763.json"""
    name = environment.get("gpu") or environment["cpu"]
    name = re.sub(r"\((R|TM)\)|\b(CPU|Processor|\d+-Core)\b|@.*", " ", name, flags=re.IGNORECASE)
    return RESULTS / ("-".join(re.findall(r"[a-z0-9]+", name.lower())) + ".json")


def held(path: Path, environment: dict) -> list[dict]:
    """Results of this column that are there, if they are of the same torch, kernels and threads."""
    there = json.loads(path.read_text()) if path.exists() else {}
    same = all(there.get("environment", {}).get(key) == environment[key] for key in ("torch", "warpup", "threads"))
    return there["results"] if there.get("column") and same else []


# ---- The table ------------------------------------------------------------------------------------------------------


def time_of(us: float) -> str:
    return f"{us:.3g} us" if us < 1000 else f"{us / 1e3:.3g} ms" if us < 1e6 else f"{us / 1e6:.3g} s"


def cell(result: dict | None) -> str:
    """Our median and half its spread, our share of the copy, how many times that the others take."""
    if result is None:
        return ""
    first, *others = result["rows"]
    parts, left_out = [], {}
    if first.get("median_us"):
        spread = 50 * first["iqr_us"] / first["median_us"]
        copied = f", {100 * first['share_of_copy']:.0f} % of copy" if first.get("share_of_copy") else ""
        parts.append(f"{time_of(first['median_us'])} ± {spread:.0f} %{copied}")
    ours = first["candidate"].startswith("warpup")
    for row in result["rows"] if not parts else others:
        if row.get("ratio"):
            times = f"{row['ratio']:.3g}"
            faster = ours and row["ratio"] < 1 and not row["candidate"].startswith("warpup")
            parts.append(f"{row['candidate']} {f'**{times}**' if faster else times}")
        elif row["failure"]:
            left_out.setdefault(row["failure"], []).append(row["candidate"])
    parts += [f"{', '.join(names)}: {why}" for why, names in left_out.items()]
    return "; ".join(parts)


def head(record: dict) -> str:
    e = record["environment"]
    where = e.get("gpu") or f"{e['cpu']} ({e['warpup']['cpu']}), {e['threads']} threads"
    kept, new = (f"{e['bandwidths'][name] / 1e9:.0f}" for name in ("copy", "copy to new memory"))
    commits = " to ".join(dict.fromkeys(result.get("git", e["git"]) for result in record["results"]))
    return f"{where}; copy {kept} GB/s, to new memory {new}; torch {e['torch']}; {commits}, {e['time'][:10]}"


def page_table(records: list[dict]) -> str:
    columns = [{result["case"]: result for result in record["results"]} for record in records]
    cases = dict.fromkeys(case for column in columns for case in column)
    rows = [["case", *map(head, records)], ["---"] * (1 + len(records))]
    rows += [[case, *(cell(column.get(case)) for column in columns)] for case in cases]
    return "\n".join("| " + " | ".join(entry.replace("|", "\\|") for entry in row) + " |" for row in rows)


def page(text: str) -> str:
    """The page with the table of all columns that there are."""
    records = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    columns = [record for record in records if record.get("column")]
    table = page_table(columns) if columns else "No column yet."
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.split(END)[1]}"
