"""Brings the fixtures `scripted_server` and `audit` to every test."""

pytest_plugins = ["pooledhttp.testing"]
