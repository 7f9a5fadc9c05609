"""What machines cost an hour: AWS's price list and its history of spot prices.

Prices are in USD, of Linux machines, before tax, credits and reservations. A price that
cannot be had is ``None``, and is called unknown wherever it is shown.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import botocore.exceptions

from .account import Account
from .wanted import Pool

#: A month of AWS's price list [h].
MONTH_H = 730.0


@dataclass(frozen=True)
class Price:
    """What one machine of a pool costs.

    Attributes
    ----------
    hourly_usd : float or None
        [USD/h]; ``None`` is unknown.
    of : str
        Day of the price, and where it is from.
    disk_hourly_usd : float or None
        The part of its disk, which a stopped machine goes on to cost [USD/h].
    """

    hourly_usd: float | None
    of: str
    disk_hourly_usd: float | None = None


class Prices:
    """Prices of one region, each asked for once."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._known: dict[tuple[str, ...], float | None] = {}
        self._spot: dict[tuple[str, str], tuple[float, str] | None] = {}

    def of(self, pool: Pool, zone: str) -> Price:
        """Return what a machine of the pool costs with its disk and its public address."""
        disk = self._listed("AmazonEC2", productFamily="Storage", volumeApiName="gp3")
        address = self._listed("AmazonVPC", group="VPCPublicIPv4Address", usagetype="InUseAddress")
        kept = None if disk is None else disk * pool.disk_gb / MONTH_H
        parts = [self._machine(pool, zone), kept, address if pool.public_address else 0.0]
        source = "spot price" if pool.spot else "price list"
        day = datetime.now(UTC).date().isoformat()
        if pool.spot and (seen := self._spot.get((pool.type, zone))):
            day = seen[1]
        if any(part is None for part in parts):
            return Price(None, f"unknown on {day}", kept)
        return Price(sum(part for part in parts if part is not None), f"{source} of {day}", kept)

    def _machine(self, pool: Pool, zone: str) -> float | None:
        if not pool.spot:
            return self._listed(
                "AmazonEC2",
                instanceType=pool.type,
                operatingSystem="Linux",
                preInstalledSw="NA",
                tenancy="Shared",
                capacitystatus="Used",
            )
        key = (pool.type, zone)
        if key not in self._spot:
            self._spot[key] = self._newest_spot(pool.type, zone)
        seen = self._spot[key]
        return None if seen is None else seen[0]

    def _newest_spot(self, kind: str, zone: str) -> tuple[float, str] | None:
        try:
            history = self._account.ec2.describe_spot_price_history(
                InstanceTypes=[kind],
                ProductDescriptions=["Linux/UNIX", "Linux/UNIX (Amazon VPC)"],
                Filters=[{"Name": "availability-zone", "Values": [zone]}],
                StartTime=datetime.now(UTC),
            )["SpotPriceHistory"]
        except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError):
            return None
        if not history:
            return None
        newest = max(history, key=lambda entry: entry["Timestamp"])
        return float(newest["SpotPrice"]), newest["Timestamp"].date().isoformat()

    def _listed(self, service: str, **filters: str) -> float | None:
        """Return the lowest price per unit above nothing that the list has."""
        key = (service, *sorted(f"{name}={value}" for name, value in filters.items()))
        if key not in self._known:
            usage = filters.pop("usagetype", "")
            wanted = {"regionCode": self._account.region, **filters}
            try:
                answer = self._account.pricing.get_products(
                    ServiceCode=service,
                    Filters=[
                        {"Type": "TERM_MATCH", "Field": field, "Value": value}
                        for field, value in wanted.items()
                    ],
                )
                found = list(_per_unit((json.loads(text) for text in answer["PriceList"]), usage))
            except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError):
                found = []
            self._known[key] = min(found, default=None)
        return self._known[key]


def _per_unit(products: Iterable[dict[str, Any]], usage: str) -> Iterable[float]:
    """Yield every on-demand price above nothing."""
    for product in products:
        if usage and usage not in product["product"]["attributes"].get("usagetype", ""):
            continue
        for term in product.get("terms", {}).get("OnDemand", {}).values():
            for dimension in term["priceDimensions"].values():
                price = float(dimension["pricePerUnit"].get("USD", 0))
                if price > 0:
                    yield price


def usd(price: float | None) -> str:
    """Return a price as people read it."""
    return "unknown" if price is None else f"{price:.4f} USD/h"
