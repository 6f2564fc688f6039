"""Make trace.csv: twenty minutes of two teams, one with short questions all the time, one with long ones in bursts."""

from __future__ import annotations

import csv
import random
from pathlib import Path

DURATION_S = 1200.0


def support(draw: random.Random) -> list[tuple[float, int, int, str]]:
    """Three questions in two seconds, at random."""
    rows, now = [], draw.expovariate(1.5)
    while now < DURATION_S:
        rows.append((now, draw.randint(80, 900), min(1 + round(draw.expovariate(1 / 120)), 600), "support"))
        now += draw.expovariate(1.5)
    return rows


def research(draw: random.Random) -> list[tuple[float, int, int, str]]:
    """Every four minutes sixty long prompts within half a minute."""
    return [
        (start + draw.uniform(0.0, 30.0), draw.randint(1500, 6000), draw.randint(200, 800), "research")
        for start in range(120, int(DURATION_S), 240)
        for _ in range(60)
    ]


def main() -> None:
    """Write the file beside this one."""
    draw = random.Random(7)
    rows = sorted(support(draw) + research(draw))
    with Path(__file__).with_name("trace.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("arrival_s", "prompt_tokens", "output_tokens", "tenant", "model"))
        writer.writerows((f"{now:.2f}", prompt, output, team, "chat") for now, prompt, output, team in rows)


if __name__ == "__main__":
    main()
