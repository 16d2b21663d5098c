"""Tables with scikit-learn: a classifier and a regressor whose rows are weighed."""

import numpy as np
from sklearn.datasets import load_breast_cancer, make_friedman1
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import deepteach as dt

draws = np.random.default_rng(0)

x, y = load_breast_cancer(return_X_y=True, as_frame=True)
names = np.array(["malignant", "benign"])[y]  # labels may be of any kind
x_train, x_rest, y_train, y_rest = train_test_split(x, names, train_size=0.6, random_state=0)
x_valid, x_test, y_valid, y_test = train_test_split(x_rest, y_rest, train_size=60, random_state=0)
wrong = draws.random(len(y_train)) < 0.3
given = np.where(wrong, np.where(y_train == "benign", "malignant", "benign"), y_train)

scaler = StandardScaler().set_output(transform="pandas").fit(x_train)
clf = dt.TeachClassifier(epochs=30, batch_size=32, random_state=0)
clf.fit(scaler.transform(x_train), given, X_valid=scaler.transform(x_valid), y_valid=y_valid)
accuracy = clf.score(scaler.transform(x_test), y_test)
worst = clf.suspect_indices_[:50]  # rows of x_train, the least trusted first
print(
    f"classes: test accuracy {accuracy:.3f}; wrong among the 50 least trusted: {wrong[worst].sum()}"
)

x, y = make_friedman1(700, noise=0.5, random_state=0)
x_train, x_rest, y_train, y_rest = train_test_split(x, y, train_size=500, random_state=0)
x_valid, x_test, y_valid, y_test = train_test_split(x_rest, y_rest, train_size=100, random_state=0)
mixed = np.flatnonzero(draws.random(len(y_train)) < 0.3)
given = y_train.copy()
given[mixed] = y_train[np.roll(mixed, 1)]  # targets of other rows

reg = dt.TeachRegressor(epochs=40, batch_size=32, lr=0.02, random_state=0)
reg.fit(x_train, given, X_valid=x_valid, y_valid=y_valid)
weights = reg.sample_weights_
print(f"quantities: R2 {reg.score(x_test, y_test):.2f}")
print(f"mean weight: exchanged {weights[mixed].mean():.2f}, of all {weights.mean():.2f}")
