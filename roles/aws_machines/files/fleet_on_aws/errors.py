"""One line for everything that can go wrong with an account."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import botocore.exceptions


class AwsError(Exception):
    """What is wrong, and what to do about it."""


_CREDENTIALS = "Your credentials are wrong or have ended. Try `aws sts get-caller-identity`."
_RIGHT = "Your account lacks a right. docs/aws.md has the policy that suffices."
_FEWER = "Ask for more in AWS's Service Quotas, or use fewer or smaller machines."
_QUOTA = "Remove one that nobody needs, or ask for more in AWS's Service Quotas."
_THROTTLED = "AWS is throttling this account. Wait a minute and run the same command again."
_DISTURBED = "AWS has a disturbance. Run the same command again: it goes on where it stopped."
#: What AWS calls it, and what to do. Found by the beginning of the code.
REMEDIES = {
    "AuthFailure": _CREDENTIALS,
    "ExpiredToken": _CREDENTIALS,
    "InvalidClientTokenId": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "RequestExpired": "Your credentials have ended, or this computer's clock is wrong.",
    "OptInRequired": "The account is not open for EC2 in this region. Open it, or use another.",
    "UnauthorizedOperation": _RIGHT,
    "AccessDenied": _RIGHT,
    "VcpuLimitExceeded": _FEWER,
    "InstanceLimitExceeded": _FEWER,
    "MaxSpotInstanceCountExceeded": _FEWER,
    "VpcLimitExceeded": _QUOTA,
    "InternetGatewayLimitExceeded": _QUOTA,
    "SecurityGroupLimitExceeded": _QUOTA,
    "RequestLimitExceeded": _THROTTLED,
    "Throttling": _THROTTLED,
    "ServiceUnavailable": _DISTURBED,
    "InternalError": _DISTURBED,
    "Unavailable": _DISTURBED,
}
#: AWS has no such machine at this moment: the pool gets fewer, the others go on.
NO_CAPACITY = (
    "InsufficientInstanceCapacity",
    "InsufficientHostCapacity",
    "SpotMaxPriceTooLow",
    "MaxSpotInstanceCountExceeded",
    "Server.InsufficientInstanceCapacity",
)


@contextmanager
def one_line(doing: str) -> Iterator[None]:
    """Turn what boto3 raises into one line."""
    try:
        yield
    except botocore.exceptions.ClientError as error:
        code = code_of(error)
        said = error.response["Error"].get("Message", "").rstrip(". ")
        remedy = next((text for start, text in REMEDIES.items() if code.startswith(start)), "")
        raise AwsError(f"{doing} failed: {code}: {said}. {remedy}".rstrip()) from error
    except (
        botocore.exceptions.NoCredentialsError,
        botocore.exceptions.PartialCredentialsError,
        botocore.exceptions.CredentialRetrievalError,
        botocore.exceptions.TokenRetrievalError,
    ) as error:
        raise AwsError(
            "there are no AWS credentials. Run `aws configure` or `aws sso login`, or set"
            f" AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY ({_flat(error)})."
        ) from error
    except botocore.exceptions.ProfileNotFound as error:
        raise AwsError(f"{_flat(error)}. Correct AWS_PROFILE, or run `aws configure`.") from error
    except (
        botocore.exceptions.EndpointConnectionError,
        botocore.exceptions.ConnectionClosedError,
        botocore.exceptions.HTTPClientError,
    ) as error:
        raise AwsError(
            f"{doing} failed: AWS cannot be reached ({_flat(error)}). See whether this computer"
            " has a network, and run the same command again: it goes on where it stopped."
        ) from error
    except botocore.exceptions.BotoCoreError as error:
        raise AwsError(f"{doing} failed: {_flat(error)}.") from error


def code_of(error: botocore.exceptions.ClientError) -> str:
    """Return AWS's name of an error."""
    return str(error.response["Error"].get("Code", "unknown"))


def _flat(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(". ")
