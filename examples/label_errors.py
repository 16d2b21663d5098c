"""Label errors only: which of my labels are wrong? No model is wanted."""

import numpy as np
from sklearn.datasets import load_digits

import deepteach as dt

x, y = load_digits(return_X_y=True)
x, draws = (x / 16).astype("float32"), np.random.default_rng(0)
rows, checked = np.split(draws.permutation(len(y)), [1500])  # ~300 that somebody checked
given = y[rows].copy()
wrong = draws.random(len(rows)) < 0.08
given[wrong] = (given[wrong] + draws.integers(1, 10, size=wrong.sum())) % 10

result = dt.train("mlp", (x[rows], given), (x[checked], y[checked]), epochs=15, baseline=False)

issues = result.issues()  # a row per sample, by its place in `rows`
worst = issues[issues["is_label_issue"]].sort_values("label_quality")
print(worst.head(5).to_string())

flagged = issues["is_label_issue"].to_numpy()
precision, found = wrong[flagged].mean(), flagged[wrong].mean()
print(f"{flagged.sum()} issues, {precision:.0%} of them wrong; {found:.0%} of {wrong.sum()} found")

clean = result.clean_indices()
x_clean, y_clean = x[rows][clean], given[clean]  # for whatever you train next
