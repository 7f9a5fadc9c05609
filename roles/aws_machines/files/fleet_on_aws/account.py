"""Clients of one region, and pages of answers."""

from __future__ import annotations

from typing import Any

import boto3
from botocore.config import Config

from .errors import AwsError, one_line

#: The price list is served from few regions; every one knows all prices.
PRICE_LIST_REGION = "us-east-1"
#: AWS throttles: tried again with growing pauses, about a minute in all.
RETRIES = {"mode": "standard", "max_attempts": 9}


class Account:
    """The caller's account in one region.

    Parameters
    ----------
    region : str
        Such as ``eu-central-1``.
    """

    def __init__(self, region: str) -> None:
        self.region = region
        with one_line("reading the AWS configuration"):
            session = boto3.Session(region_name=region)
            known = session.get_available_regions("ec2")
            if region not in known:
                raise AwsError(
                    f"aws_machines_region is {region!r}, which is no region of EC2. Use one of"
                    f" {', '.join(sorted(known))}."
                )
            if session.get_credentials() is None:
                raise AwsError(
                    "there are no AWS credentials. Run `aws configure` or `aws sso login`, or set"
                    " AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
                )
            config = Config(retries=RETRIES, connect_timeout=10, read_timeout=60)
            # Prices are wanted, not needed: their absence may not hold anything up.
            hasty = Config(retries={"mode": "standard", "max_attempts": 2}, connect_timeout=5)
            self.ec2: Any = session.client("ec2", config=config)
            self.sts: Any = session.client("sts", config=config)
            self.pricing: Any = session.client(
                "pricing", region_name=PRICE_LIST_REGION, config=hasty
            )

    def caller(self) -> str:
        """Return who is calling: the last part of the caller's ARN."""
        with one_line("asking AWS who you are"):
            return str(self.sts.get_caller_identity()["Arn"]).rpartition("/")[2].rpartition(":")[2]

    def every(self, operation: str, key: str, **arguments: Any) -> list[dict[str, Any]]:
        """Return all that an operation lists, over all pages."""
        with one_line(operation):
            if not self.ec2.can_paginate(operation):
                return list(getattr(self.ec2, operation)(**arguments)[key])
            pages = self.ec2.get_paginator(operation).paginate(**arguments)
            return [item for page in pages for item in page[key]]
