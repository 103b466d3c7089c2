"""Channel groups: which channels of which parameters must be removed together."""

from passes.channels.tracing import ChannelGroup, Channels, Slot, rules, trace

__all__ = ["ChannelGroup", "Channels", "Slot", "rules", "trace"]
