#!/usr/bin/env python
"""Run a command with the keys of an AWS Secrets Manager secret in its environment: with-secret SECRET COMMAND...

The secret is a JSON object of names and values, such as OPENAI_API_KEY. The values go from the service into the
command's environment and nowhere else; what the node may read is for its instance profile to say.
"""

from __future__ import annotations

import json
import os
import sys


def main(arguments: list[str]) -> None:
    """Become the command; never returns when the secret can be read."""
    if len(arguments) < 2:
        sys.exit("usage: with-secret SECRET COMMAND...")
    import boto3

    secret, *command = arguments
    text = boto3.client("secretsmanager").get_secret_value(SecretId=secret)["SecretString"]
    os.execvpe(command[0], command, {**os.environ, **json.loads(text)})


if __name__ == "__main__":
    main(sys.argv[1:])
