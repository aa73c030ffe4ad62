"""The data behind a figure, as CSV and as NetCDF, with the command that makes it again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import nfd_fast
from nfd_fast.extras import MissingExtraError

if TYPE_CHECKING:
    import xarray as xr


def require() -> None:
    """Raise MissingExtraError unless data can be exported; called before any work."""
    try:
        import scipy.io  # noqa: F401
        import xarray  # noqa: F401
    except ImportError:
        raise MissingExtraError("the data behind a figure", "xarray", "study") from None


def _origin(command: str, seed: int) -> dict[str, str]:
    return {"command": command, "seed": str(seed), "nfd_fast": nfd_fast.__version__}


def origin_lines(*, command: str, seed: int) -> str:
    """Return the first lines of a CSV file: what makes the data again."""
    return "".join(f"# {key}: {value}\n" for key, value in _origin(command, seed).items())


def files(name: str, dataset: xr.Dataset, *, command: str, seed: int) -> dict[str, bytes]:
    """Return the content of ``<name>.csv`` and ``<name>.nc``.

    Parameters
    ----------
    name : str
    dataset : xarray.Dataset
        Arrays with labelled axes.
    command, seed
        What makes the data again; the first lines of the CSV file, which start with #, and the
        attributes of the NetCDF file have them, and the package's version.
    """
    table = dataset.to_dataframe().dropna(how="all").reset_index()
    csv = origin_lines(command=command, seed=seed)
    csv += table.to_csv(index=False, lineterminator="\n")
    attributes = dataset.attrs | _origin(command, seed)
    netcdf = dataset.assign_attrs(attributes).to_netcdf(engine="scipy")
    return {f"{name}.csv": csv.encode(), f"{name}.nc": bytes(netcdf)}
