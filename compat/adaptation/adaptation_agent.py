from metarl.adaptation.adaptation_agent import *
