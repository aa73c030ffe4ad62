"""Fit the approximations behind the elementary functions and print them as a C++ header.

    python tools/minimax.py > csrc/include/nfd_fast/coefficients.hpp        (needs mpmath; a minute)

Every table is the best polynomial P, or rational P/Q with Q(0) = 1, in the sense of the largest
weighted error |w (P/Q - f)| on an interval. The weight turns the error of the fitted factor into
the *relative* error of the function that is finally returned, so precision is spent only where the
caller can see it. The fit is Remez' exchange in 60-digit arithmetic, started from a least-squares
fit on Chebyshev points; it is deterministic. Then the coefficients are rounded to the target type
one after the other, each time fitting those that are left again, so that they make up for the
rounding. The comment above each table states the error that remains, as a power of two (rounding
errors of the evaluation come on top: half an ulp is 2^-24 in float, 2^-53 in double).

To change the accuracy of a function, change its degrees in `tables` and run this file again.
"""

from collections.abc import Callable
from dataclasses import dataclass

from mpmath import atanh, cos, erfc, exp, log, lu_solve, matrix, mp, mpf, pi, sin, sqrt, tanh

mp.dps = 60

PRECISION = {"float": 24, "double": 53}
EXPONENT_BITS = {"float": 8, "double": 11}

# Arguments from which on a function is constant in the type: where its fit ends.
GAUSS_LIMIT = {"float": mpf(15), "double": mpf(39)}
ERF_SATURATION = {"float": mpf(4), "double": mpf(6)}
TANH_SATURATION = {"float": mpf("9.02"), "double": mpf("19.1")}


@dataclass(frozen=True)
class Table:
    """One factor to approximate: `function` on [low, high], judged by `weight`."""

    name: str
    comment: str
    judged_by: str
    function: Callable
    weight: Callable
    low: mpf
    high: mpf
    degrees: tuple  # (numerator, denominator)
    first: mpf | None = None  # P(0), where it is a number that must be met exactly
    crowding: float = 0.0  # how strongly the points crowd towards `low`: long, decaying functions


def evaluate(coefficients, x):
    value = mpf(0)
    for coefficient in reversed(coefficients):
        value = value * x + coefficient
    return value


def chebyshev_points(table, count):
    points = []
    for j in range(count):
        u = (1 - cos(pi * (j + mpf(1) / 2) / count)) / 2
        points.append(table.low + (table.high - table.low) * u / (1 + table.crowding * (1 - u)))
    return points


def linear_row(table, x, f, known):
    """Coefficients and right-hand side of P(x) - f (Q(x) - 1) = f, linear in the unknowns.

    `known` holds the coefficients that are already decided: P's from the lowest on, then Q's.
    """
    m, n = table.degrees
    row = [x**k for k in range(m + 1)] + [-f * x**k for k in range(1, n + 1)]
    right = f - sum(entry * value for entry, value in zip(row, known))
    return row[len(known) :], right


def unpack(table, known, solution):
    values = [*known, *(solution[i] for i in range(len(solution)))]
    count = table.degrees[0] + 1
    return values[:count], [mpf(1)] + values[count:]


def least_squares(table, points, f, w, known):
    """Weighted least squares; the denominator of one pass weighs the next (Sanathanan-Koerner)."""
    q = [mpf(1)]
    for _ in range(6 if table.degrees[1] else 1):
        rows, rights = [], []
        for x, fx, wx in zip(points, f, w):
            scale = wx / evaluate(q, x)
            row, right = linear_row(table, x, fx, known)
            rows.append([scale * entry for entry in row])
            rights.append(scale * right)
        size = len(rows[0])
        normal, projected = matrix(size, size), matrix(size, 1)
        for i in range(size):
            projected[i] = sum(row[i] * right for row, right in zip(rows, rights))
            for j in range(i + 1):
                normal[i, j] = normal[j, i] = sum(row[i] * row[j] for row in rows)
        p, q = unpack(table, known, lu_solve(normal, projected))
    return p, q


def equioscillate(table, points, f, w, known, reference):
    """P, Q whose error alternates between +E and -E on the reference points."""
    size = len(reference)
    q = [mpf(1)]
    level = mpf(0)
    for _ in range(20 if table.degrees[1] else 1):
        system, right = matrix(size, size), matrix(size, 1)
        for i, g in enumerate(reference):
            sign = (-1) ** i
            row, right[i] = linear_row(table, points[g], f[g], known)
            row.append(-sign * evaluate(q, points[g]) / w[g])
            for j in range(size):
                system[i, j] = row[j]
        solution = lu_solve(system, right)
        p, q = unpack(table, known, solution[: size - 1])
        previous, level = level, solution[size - 1]
        if abs(level - previous) <= mpf("1e-9") * abs(level):
            break
    return p, q


def alternating_extrema(error, count):
    """Indices of `count` successive extrema of alternating sign, the largest there are, or None."""
    extrema = []
    for g, e in enumerate(error):
        if extrema and (e > 0) == (error[extrema[-1]] > 0):
            if abs(e) > abs(error[extrema[-1]]):
                extrema[-1] = g
        else:
            extrema.append(g)
    while len(extrema) > count:
        if len(extrema) == count + 1:
            extrema.pop(0 if abs(error[extrema[0]]) < abs(error[extrema[-1]]) else -1)
        else:
            pairs = zip(extrema, extrema[1:])
            sizes = [max(abs(error[a]), abs(error[b])) for a, b in pairs]
            weakest = sizes.index(min(sizes))
            del extrema[weakest : weakest + 2]
    return extrema if len(extrema) == count else None


def remez(table, points, f, w, known):
    """The best P, Q in working precision, given the coefficients that are already decided."""
    unknowns = sum(table.degrees) + 2 - len(known)

    def errors(p, q):
        return [wx * (evaluate(p, x) / evaluate(q, x) - fx) for x, fx, wx in zip(points, f, w)]

    best = least_squares(table, points, f, w, known)
    error = errors(*best)
    worst = max(map(abs, error))
    for _ in range(20):
        reference = alternating_extrema(error, unknowns)
        if reference is None:
            break
        if worst < mpf("1.001") * min(abs(error[g]) for g in reference):
            break
        candidate = equioscillate(table, points, f, w, known, reference)
        error = errors(*candidate)
        if max(map(abs, error)) < worst:
            best, worst = candidate, max(map(abs, error))
    return best


def rounded(x, bits):
    with mp.workprec(bits):
        return +mpf(x)


def fit(table, bits):
    """P and Q with coefficients of the given precision."""
    points = chebyshev_points(table, 20 * (sum(table.degrees) + 2))
    f = [table.function(x) for x in points]
    w = [table.weight(x) for x in points]
    known = [] if table.first is None else [table.first]
    p, q = remez(table, points, f, w, known)
    while len(known) < sum(table.degrees) + 1:
        known.append(rounded((p + q[1:])[len(known)], bits))
        if len(known) < sum(table.degrees) + 1:
            p, q = least_squares(table, points, f, w, known)
    return unpack(table, known, [])


def remaining_error(table, p, q):
    points = chebyshev_points(table, 1000)
    return max(
        abs(table.weight(x) * (evaluate(p, x) / evaluate(q, x) - table.function(x))) for x in points
    )


def literal(x, dtype):
    """Hexadecimal, hence exact, without padding zeros."""
    mantissa, exponent = float(x).hex().split("p")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{mantissa}p{exponent}" + ("F" if dtype == "float" else "")


def wrapped(literals, indent):
    lines, line = [], indent
    for i, text in enumerate(literals):
        text += "," if i + 1 < len(literals) else ""
        if line != indent and len(line) + len(text) + 1 > 96:
            lines.append(line)
            line = indent
        line += text if line == indent else " " + text
    return "\n".join([*lines, line])


def print_function(name, coefficients, dtype):
    literals = [literal(c, dtype) for c in coefficients]
    print(f"    NFD_FAST_INLINE static constexpr Polynomial<{dtype}, {len(literals)}> {name}() {{")
    print("        return {{\n" + wrapped(literals, " " * 12) + "}};")
    print("    }")


def tables(dtype):
    def pick(for_float, for_double):
        return for_float if dtype == "float" else for_double

    half_log2 = mpf("1.01") * log(2) / 2  # 1%: n = round(x/log 2) is itself rounded
    quarter = pi / 4

    def log_factor(z):  # log((1+s)/(1-s)) = s (2 + z factor),  z = s^2
        return (2 * atanh(sqrt(z)) / sqrt(z) - 2) / z

    def log_weight(z):
        return z / (2 * atanh(sqrt(z)) / sqrt(z))

    def tanh_ratio(z):
        return tanh(sqrt(z)) / sqrt(z)

    gauss_limit = GAUSS_LIMIT[dtype]
    crowding = pick(7.0, 15.0)

    def mills(t):
        return exp(t * t / 2) * erfc(t / sqrt(2)) / 2

    def gelu_slope(t):
        return mills(t) - t / sqrt(2 * pi)

    result = [
        Table(
            "exp_factor",
            "e^r = 1 + r + r^2 P(r), |r| <= log(2)/2",
            "relative error of e^r - 1:",
            lambda r: (exp(r) - 1 - r) / r**2,
            lambda r: abs(r**2 / (exp(r) - 1)),
            -half_log2,
            half_log2,
            pick((4, 0), (9, 0)),
            first=mpf("0.5"),
        ),
        Table(
            "log1p_factor",
            "log(1+x) = s (2 + z P(z)), s = x/(2+x), z = s^2, 0 <= x <= 1",
            "relative error:",
            log_factor,
            log_weight,
            mpf(0),
            mpf(1) / 9,
            pick((3, 0), (8, 0)),
        ),
        Table(
            "log_factor",
            "log(1+x) = s (2 + z P(z)) as above, sqrt(1/2) <= 1+x <= sqrt(2)",
            "relative error:",
            log_factor,
            log_weight,
            mpf(0),
            ((sqrt(2) - 1) / (sqrt(2) + 1)) ** 2,
            pick((2, 0), (6, 0)),
        ),
        Table(
            "sin_factor",
            "sin(pi z/4) = z P(z^2), |z| <= 1",
            "relative error:",
            lambda z: sin(quarter * sqrt(z)) / sqrt(z),
            lambda z: sqrt(z) / sin(quarter * sqrt(z)),
            mpf(0),
            mpf(1),
            pick((3, 0), (6, 0)),
        ),
        Table(
            "cos_factor",
            "cos(pi z/4) = P(z^2), |z| <= 1",
            "relative error:",
            lambda z: cos(quarter * sqrt(z)),
            lambda z: 1 / cos(quarter * sqrt(z)),
            mpf(0),
            mpf(1),
            pick((4, 0), (7, 0)),
            first=mpf(1),
        ),
        Table(
            "erf_exponent",
            "erf(t) = 1 - e^(-t P(t)), 0 <= t <= erf_saturation",
            "relative error of erf:",
            lambda t: -log(erfc(t)) / t,
            lambda t: t * erfc(t) / (1 - erfc(t)),
            mpf(0),
            ERF_SATURATION[dtype],
            pick((8, 0), (22, 0)),
        ),
        Table(
            "mills",
            "(1 - Phi(t)) e^(t^2/2) = P(t)/Q(t), 0 <= t <= gauss_limit",
            "relative error:",
            mills,
            lambda t: 1 / mills(t),
            mpf(0),
            gauss_limit,
            pick((4, 5), (10, 11)),
            first=mpf("0.5"),
            crowding=crowding,
        ),
        Table(
            "gelu_slope",
            "gelu'(-t) e^(t^2/2) = P(t)/Q(t), 0 <= t <= gauss_limit",
            "error relative to max(|.|, 0.1):",
            gelu_slope,
            lambda t: 1 / max(abs(gelu_slope(t)), mpf("0.1")),
            mpf(0),
            gauss_limit,
            pick((6, 5), (12, 11)),
            first=mpf("0.5"),
            crowding=crowding,
        ),
    ]
    if dtype == "float":
        result.append(
            Table(
                "tanh_ratio",
                "tanh(t) = t P(t^2)/Q(t^2), 0 <= t <= tanh_saturation",
                "relative error:",
                tanh_ratio,
                lambda z: 1 / tanh_ratio(z),
                mpf(0),
                TANH_SATURATION[dtype] ** 2,
                (4, 4),
                first=mpf(1),
                crowding=20.0,
            )
        )
    return result


def print_struct(dtype):
    bits = PRECISION[dtype]
    log2_high = rounded(log(2), bits - EXPONENT_BITS[dtype])
    print(f"template <>\nstruct Coefficients<{dtype}> {{")
    scalars = [
        ("log2_e", 1 / log(2), "1/log 2"),
        ("log_2", log(2), "log 2"),
        ("log_2_high", log2_high, "times any exponent: exact"),
        ("log_2_low", log(2) - log2_high, "what is left of log 2"),
        ("sqrt_half", sqrt(mpf(1) / 2), "sqrt(1/2)"),
        ("two_over_sqrt_pi", 2 / sqrt(pi), "2/sqrt(pi)"),
        ("gauss_limit", GAUSS_LIMIT[dtype], "t^2 e^(-t^2/2) is zero from here on"),
        ("erf_saturation", ERF_SATURATION[dtype], "erf(t) is 1 from here on"),
        ("tanh_saturation", TANH_SATURATION[dtype], "tanh(t) is 1 from here on"),
    ]
    for name, value, comment in scalars:
        line = f"    static constexpr {dtype} {name} = {literal(rounded(value, bits), dtype)};"
        print(f"{line}  // {comment}")
    for table in tables(dtype):
        p, q = fit(table, bits)
        error = float(log(remaining_error(table, p, q), 2))
        print(f"\n    /// {table.comment}\n    /// {table.judged_by} 2^{error:.1f}")
        if len(q) == 1:
            print_function(table.name, p, dtype)
        else:
            print_function(f"{table.name}_numerator", p, dtype)
            print_function(f"{table.name}_denominator", q, dtype)
    print("};\n")


HEADER = """\
// Generated by tools/minimax.py: do not edit, change the fit and run it again.
//
// Minimax coefficients of the elementary functions, lowest order first. They are returned by
// functions because a static constexpr array has no address in CUDA device code. Each comment ends
// with the largest error of the approximation itself.
//
// clang-format off

#pragma once

#include "config.hpp"

namespace nfd_fast {
inline namespace NFD_FAST_TARGET {

/// Coefficients of a polynomial in order of rising powers.
template <class T, int Size>
struct Polynomial {
    T coefficient[Size];
};

template <class T>
struct Coefficients;
"""

FOOTER = """\
}  // namespace NFD_FAST_TARGET
}  // namespace nfd_fast"""


def main():
    print(HEADER)
    for dtype in PRECISION:
        print_struct(dtype)
    print(FOOTER)


if __name__ == "__main__":
    main()
