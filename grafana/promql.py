"""The shapes of PromQL the dashboard asks in."""

PROCESS = 'job=~"$job", instance=~"$instance"'
SESSION = f'{PROCESS}, sqlalchemy_session_name=~"$session"'


def of(metric: str, *matchers: str, scope: str = SESSION) -> str:
    """Every series of a metric that the variables of the dashboard let through."""
    return f"{metric}{{{', '.join((*matchers, scope))}}}"


def per_second(series: str, *by: str) -> str:
    return f"{_sum(*by)}(rate({series}[$__rate_interval]))"


def ratio(part: str, whole: str) -> str:
    """Two rates divided: zero while the part has never happened, nothing while the whole rests."""
    return f"({per_second(part)} or vector(0)) / ({per_second(whole)} > 0)"


def quantile(rank: float, histogram: str, *by: str) -> str:
    return f"histogram_quantile({rank}, {per_second(of(f'{histogram}_bucket'), 'le', *by)})"


def counted(series: str, *by: str, window: str = "$__rate_interval") -> str:
    """How often something rare happened in the window, its very first time included.

    A counter appears with the value 1, and increase() of a series that has just appeared is 0:
    a leak that happens once a day would never show. A series that the window did not start with
    counts with all it has.
    """
    return (
        f"{_sum(*by)}(({series} unless {series} offset {window}) or increase({series}[{window}]))"
    )


def or_none(expression: str, label: str) -> str:
    """The expression, or one zero labelled `none` where the healthy answer is no series at all."""
    return f'{expression} or on() label_replace(vector(0), "{label}", "none", "", "")'


def _sum(*by: str) -> str:
    return f"sum by ({', '.join(by)}) " if by else "sum"
