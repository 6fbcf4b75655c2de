"""Minimising a smooth convex function exactly, or saying that it has no minimum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from calibrant.posthoc.calibrator import Floats, NoOptimumError

Derivatives = Callable[[Floats], tuple[float, Floats, Floats]]


def minimum(of: Derivatives, start: Floats, *, none: str) -> Floats:
    """Where a convex function is least, to about 1e-10 of the parameters.

    A trust region brings it near, Newton's method to the end. Along a direction without a minimum
    Newton's steps do not shrink however small the gradient, so they decide, not the gradient.

    Parameters
    ----------
    of : (P,) -> value, gradient (P,), Hessian (P, P).
    none : what to say when there is no minimum at finite parameters.

    Raises
    ------
    NoOptimumError
        If there is none.
    """
    from scipy.optimize import minimize

    def value_and_gradient(x: Any) -> tuple[float, Any]:
        value, gradient, _ = of(x)
        return value, gradient

    def hessian_alone(x: Any) -> Any:
        return of(x)[2]

    found: Floats = minimize(
        value_and_gradient,
        start,
        jac=True,
        hess=hessian_alone,
        method="trust-exact",
        options={"gtol": 1e-7, "maxiter": 500},
    ).x
    for _ in range(20):
        _, gradient, hessian = of(found)
        try:
            step = np.linalg.solve(hessian, gradient)
        except np.linalg.LinAlgError:
            break
        found = found - step
        if not np.isfinite(found).all():
            break
        if np.abs(step).max() <= 1e-10 * (1 + np.abs(found).max()):
            return found
    raise NoOptimumError(none)
