from metarl.adaptation.test_time_adaptation import *
