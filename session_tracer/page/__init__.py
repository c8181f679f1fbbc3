"""One page about sessions: live, and as a report of a log; both show the same JSON document."""
