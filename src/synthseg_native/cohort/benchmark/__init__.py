"""How long it takes, and how much memory: two benchmarks with the same statistics.

- `timings`: medians, means, spreads, and the ratio of two times of one pair, for both
- `in_turn`: the workflow's own, of the engines and the reference that a cohort asks for (benchmark.tsv)
- `command`: `make benchmark`, of whole commands on this machine, with networks and images of full size; its rounds are
  in `rounds`, who takes part in `contestants`, what is segmented in `inputs`, `images` and `weights`, the report in
  `report`, `pages` and `plots`
"""

from synthseg_native.cohort.benchmark.in_turn import COLUMNS, RUN_COLUMNS, run_benchmark, statistics_of

__all__ = ["COLUMNS", "RUN_COLUMNS", "run_benchmark", "statistics_of"]
