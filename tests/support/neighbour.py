"""The model beside those that break, and the agent around it: whether both are what they were."""

from support.agent import Agent, alive
from support.broken import LIGHT, LIGHT_SCORE, SIZE
from support.calls import OK, outcome, request

TOLERANCE = 1e-3


class Neighbour:
    """A RUNNING model of an agent that nothing may happen to, the only one when it is made."""

    def __init__(self, agent: Agent, name: str) -> None:
        self.name = name
        self._agent = agent
        self._agent_pid = agent.pid
        (self.worker,) = agent.workers()
        self._stub = agent.stub()
        self.answered = 0

    def other_workers(self) -> list[int]:
        """Return the pids of the other models' workers."""
        return [pid for pid in self._agent.workers() if pid != self.worker]

    def answers(self) -> None:
        """Fail unless the model judges an image, rightly."""
        code, details, response = outcome(self._stub.DetectAnomalies, request(self.name, *SIZE, LIGHT))
        assert code == OK, f"the neighbour answers {code}: {details}"
        score = response.detect_anomaly_result.anomaly_score
        assert abs(score - LIGHT_SCORE) < TOLERANCE, f"the neighbour gives {score}"
        self.answered += 1

    def check(self) -> None:
        """Fail unless agent and worker are the processes that they were, and the model judges an image, rightly."""
        assert self._agent.process.pid == self._agent_pid, "the agent is another process"
        assert self._agent.process.poll() is None, "the agent has ended"
        assert alive(self.worker), "the neighbour's worker has ended"
        self.answers()
