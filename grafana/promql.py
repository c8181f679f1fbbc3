"""The PromQL expressions of the dashboard."""

PROCESS = 'job=~"$job", instance=~"$instance"'
SESSION = f'{PROCESS}, sqlalchemy_session_name=~"$session"'


def of(metric: str, *matchers: str, scope: str = SESSION) -> str:
    """Every series of a metric that matches the variables of the dashboard."""
    return f"{metric}{{{', '.join((*matchers, scope))}}}"


def per_second(series: str, *by: str) -> str:
    return f"{_sum(*by)}(rate({series}[$__rate_interval]))"


def ratio(part: str, whole: str) -> str:
    """The ratio of two rates: zero if the part never happened, empty if the whole has no rate."""
    return f"({per_second(part)} or vector(0)) / ({per_second(whole)} > 0)"


def quantile(rank: float, histogram: str, *by: str) -> str:
    return f"histogram_quantile({rank}, {per_second(of(f'{histogram}_bucket'), 'le', *by)})"


def counted(series: str, *by: str, window: str = "$__rate_interval") -> str:
    """Number of times that a rare event happened in the window, including the very first.

    A counter appears with the value 1, and increase() of a series that has just appeared is 0:
    a leak that happens once a day would never show. A series that the window did not start with
    counts with all it has.
    """
    return (
        f"{_sum(*by)}(({series} unless {series} offset {window}) or increase({series}[{window}]))"
    )


def or_none(expression: str, label: str) -> str:
    """The expression, or one zero labelled `none` if there is no series, which is healthy."""
    return f'{expression} or on() label_replace(vector(0), "{label}", "none", "", "")'


def _sum(*by: str) -> str:
    return f"sum by ({', '.join(by)}) " if by else "sum"
