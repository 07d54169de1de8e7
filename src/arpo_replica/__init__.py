"""arpo-replica: check a published result in reinforcement learning for computer-use agents.

Data flows one way: tasks -> episodes -> training -> checkpoints -> episodes -> scores -> report.
"""

__version__ = "0.1.0"
