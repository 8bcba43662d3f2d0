#!/usr/bin/env python3
"""The polynomials of src/native/kernels/gelu.h: Phi(x) - 1/2 and GELU'(x) - 1/2 as x P(t), t = 2 x^2 / B^2 - 1, on [-B, B].

    pip install numpy && scripts/gelu_polynomials.py

P(1) = 1 / (2 B), so that Phi is 0 and 1, and GELU' too, from B on. Least squares, reweighted until the largest absolute
error of x P is nearly the least possible; the errors printed are those of arithmetic in fp32.
"""
from math import erf

import numpy as np

phi = lambda x: np.exp(-x * x / 2) / np.sqrt(2 * np.pi)
Phi = np.vectorize(lambda x: 0.5 * (1 + erf(x / 2**0.5)))
FUNCTIONS = {"cdf": lambda x: Phi(x) - 0.5, "slope": lambda x: Phi(x) + x * phi(x) - 0.5}


def fit(f, bound, degree):
    t = np.cos((np.arange(4000) + 0.5) * np.pi / 4000)
    x = np.sqrt((t + 1) / 2) * bound
    end = 0.5 / bound
    target = f(x) - x * end
    powers = np.polynomial.chebyshev.chebvander(t, degree - 1) * (x * (t - 1))[:, None]
    weights = np.ones_like(x)
    for _ in range(200):
        found = np.linalg.lstsq(powers * np.sqrt(weights)[:, None], target * np.sqrt(weights), rcond=None)[0]
        error = np.abs(powers @ found - target)
        weights *= error / error.max() + 1e-3
        weights /= weights.max()
    return np.polynomial.polynomial.polyadd([end], np.polynomial.polynomial.polymul([-1, 1], np.polynomial.chebyshev.cheb2poly(found)))


def in_fp32(coefficients, bound, x):
    one = np.float32
    x = np.clip(x.astype(one), -one(bound), one(bound))
    t = x * x * one(2 / bound**2) - one(1)
    p = np.full_like(x, one(coefficients[-1]))
    for c in coefficients[-2::-1]:
        p = p * t + one(c)
    return x * p


for name, bound, degree in [("cdf", 5.25, 13), ("slope", 5.5, 15), ("cdf", 4.0, 7), ("slope", 4.5, 9)]:
    coefficients = fit(FUNCTIONS[name], bound, degree)
    x = np.linspace(-12, 12, 1_000_001)
    error = np.abs(in_fp32(coefficients, bound, x) - FUNCTIONS[name](x)).max()
    print(f"{name}, B {bound}, degree {degree}: error {error:.1e}")
    print("   ", ", ".join(f"{c:.9e}f" for c in coefficients[::-1]))
