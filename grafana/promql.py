"""The PromQL expressions of the dashboard."""

PROCESS = 'job=~"$job", instance=~"$instance"'
SESSION = f'{PROCESS}, sqlalchemy_session_name=~"$session"'

# A label of this series is the version of the process, the resource's `service.version`.
_VERSIONS = f"target_info{{{PROCESS}}}"
_VERSION = "service_version"
# A process that has restarted may have two of these for some minutes.
_OF_THE_PROCESS = (
    f"* on (job, instance) group_left ({_VERSION}) topk by (job, instance) (1, {_VERSIONS})"
)

# How often the sum of a counter is looked at: bars are multiples of it, and start on them.
_LOOK = "15s"
# A bar's own time. Its first look has to be the last one of the bar before, and Prometheus 3 leaves
# out what lies exactly at the beginning: hence the second. ("1s60000ms" is 61 s to Prometheus.)
EACH_BAR = "1s${__interval_ms}ms"


def of(metric: str, *matchers: str, scope: str = SESSION) -> str:
    """Every series of a metric that matches the variables of the dashboard."""
    return f"{metric}{{{', '.join((*matchers, scope))}}}"


def total(series: str, *by: str) -> str:
    return f"{_sum(*by)}({series})"


def per_second(series: str, *by: str) -> str:
    return f"{_sum(*by)}(rate({series}[$__rate_interval]))"


def ratio(part: str, whole: str) -> str:
    """The ratio of two rates: zero if the part never happened, empty if the whole has no rate."""
    return f"({per_second(part)} or vector(0)) / ({per_second(whole)} > 0)"


def mean(histogram: str, *by: str) -> str:
    return (
        f"{per_second(of(f'{histogram}_sum'), *by)}"
        f" / ({per_second(of(f'{histogram}_count'), *by)} > 0)"
    )


def mean_by_version(histogram: str) -> str:
    return (
        f"{_per_second_by_version(f'{histogram}_sum')}"
        f" / ({_per_second_by_version(f'{histogram}_count')} > 0)"
    )


def quantile(rank: float, histogram: str, *by: str) -> str:
    return f"histogram_quantile({rank}, {per_second(of(f'{histogram}_bucket'), 'le', *by)})"


def happened(series: str, *by: str, window: str = EACH_BAR) -> str:
    """Number of times that a rare event happened in the window, including the very first.

    The counter of each kind of event exists from the start with the value 0. The first event brings
    further labels with it, and a series of its own that appears with the value 1. Therefore the sum
    of each process is what increases.
    """
    of_each_process = total(series, "job", "instance", *by)
    return f"{_sum(*by)}(increase({of_each_process}[{window}:{_LOOK}]))"


def happened_by_version(metric: str, *matchers: str) -> str:
    """The same over the whole time range, by the version of the process at that time."""
    of_each_process = total(of(metric, *matchers), "job", "instance")
    return f"{_sum(_VERSION)}(increase(({of_each_process} {_OF_THE_PROCESS})[$__range:{_LOOK}]))"


def unless_empty(expression: str, label: str, otherwise: str) -> str:
    """The expression with another value of a label that some series do not have."""
    return f'label_replace({expression}, "{label}", "{otherwise}", "{label}", "")'


def versions() -> str:
    """The number of processes of each version."""
    return unless_empty(f"count by ({_VERSION}) ({_VERSIONS})", _VERSION, "unknown")


def increase(series: str, *by: str) -> str:
    """How much counters have increased in the time range, where a first value is not important."""
    return f"{_sum(*by)}(increase({series}[$__range]))"


def new_versions() -> str:
    """A value where a version runs that was not there in the ten minutes before."""
    by = f"count by (job, {_VERSION}) "
    return f"{by}({_VERSIONS}) unless {by}(last_over_time({_VERSIONS}[10m] offset $__interval))"


def _per_second_by_version(metric: str) -> str:
    of_each_process = per_second(of(metric), "job", "instance")
    return f"{_sum(_VERSION)}({of_each_process} {_OF_THE_PROCESS})"


def _sum(*by: str) -> str:
    return f"sum by ({', '.join(by)}) " if by else "sum"
