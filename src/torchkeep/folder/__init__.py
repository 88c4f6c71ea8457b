"""Our own format: records, shards, partition, commit, verified reading, retention. See docs/format.md."""
