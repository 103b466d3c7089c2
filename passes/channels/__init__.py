"""Channel groups: which channels of which parameters depend on each other and must be removed together."""

from passes.channels.groups import ChannelGroup, Channels, Slot
from passes.channels.tracing import trace

__all__ = ["ChannelGroup", "Channels", "Slot", "trace"]
