"""What a reader of bytes raises where neither file nor position is known; whoever knows both raises the typed error."""


class MalformedError(Exception):
    """Bytes break the rules of their format: becomes a `CorruptError`."""


class ExcessError(Exception):
    """Bytes ask for more than their number can justify: becomes a `LimitError`."""
