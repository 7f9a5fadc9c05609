"""The steps of a statistics department's ipyparallel tutorial, on a fleet: HOST...

A direct view with a lambda, ``execute`` and ``push``; a load-balanced view whose function works on
the arrays that were pushed. The model that leaves one observation out is least squares here.
"""

import sys

import ipyparallel
import numpy as np

c = ipyparallel.Client()
assert len(c.ids) == len(sys.argv[1:]), c.ids

dview = c[:]
dview.block = True
assert dview.apply(lambda: "Hello, World") == ["Hello, World"] * len(c)

dview.execute("import numpy as np")
dview.execute("import socket")


def leave_out(index, observed, features):  # type: ignore[no-untyped-def]
    others = np.delete(features, index, axis=0)
    weights, *_ = np.linalg.lstsq(others, np.delete(observed, index), rcond=None)
    return float(features[index] @ weights)


np.random.seed(0)
n, p = 500, 50
X = np.random.normal(0, 1, size=(n, p))
Y = X[:, 0] + pow(abs(X[:, 1] * X[:, 2]), 0.5) + X[:, 1] - X[:, 2] + np.random.normal(0, 1, n)
dview.push({"X": X, "Y": Y, "leave_out": leave_out})

lview = c.load_balanced_view()
lview.block = True


def wrapper(i):  # type: ignore[no-untyped-def]
    return socket.gethostname(), leave_out(i, Y, X)  # type: ignore[name-defined]  # noqa: F821


predicted = lview.map(wrapper, range(50))
assert [value for _, value in predicted] == [leave_out(i, Y, X) for i in range(50)]
assert {host for host, _ in predicted} == set(sys.argv[1:])


def closing_over(observed, features):  # type: ignore[no-untyped-def]
    return lambda i: float(features[i] @ features[i] + observed[i])


dview.use_cloudpickle()
assert lview.map(closing_over(Y, X), range(50)) == [closing_over(Y, X)(i) for i in range(50)]
print("all as on one machine")
