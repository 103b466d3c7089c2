"""Compression as a pass of Microsoft Olive, which runs workflows of passes over a model.

`options` says what the pass takes, `hmc_pass` is the pass, and `package_config` tells Olive of it. Only the last two
import Olive, which is an extra.
"""
