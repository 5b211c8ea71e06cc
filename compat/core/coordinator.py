from metarl.core.coordinator import *
