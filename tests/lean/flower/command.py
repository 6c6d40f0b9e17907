"""What the entry point names."""

import click

flower = click.Command("flower")
