"""What ``neurofleet run loo-forest`` has engines do.

scikit-learn is imported with the module, so once for each engine: every call is in a process
of its own, which would import it again. What it imports when it first fits and predicts is
imported by a small forest.
"""

from __future__ import annotations

import numpy as np
from sklearn.ensemble import RandomForestRegressor

RandomForestRegressor(n_estimators=1).fit([[0.0], [1.0]], [0.0, 1.0]).predict([[0.5]])


def predict_left_out(
    index: int, *, features: np.ndarray, target: np.ndarray, trees: int, seed: int
) -> float:
    """Predict one observation from a forest that was fitted to all others."""
    forest = RandomForestRegressor(n_estimators=trees, random_state=seed + index)
    forest.fit(np.delete(features, index, axis=0), np.delete(target, index))
    return float(forest.predict(features[index : index + 1])[0])
