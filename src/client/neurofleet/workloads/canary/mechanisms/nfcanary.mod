COMMENT
A slow potassium current: one first-order gate with a fixed time constant.
ENDCOMMENT

NEURON {
    SUFFIX nfcanary
    USEION k READ ek WRITE ik
    RANGE gbar
}

UNITS {
    (mV) = (millivolt)
    (mA) = (milliamp)
    (S) = (siemens)
}

PARAMETER {
    gbar = 0.0001 (S/cm2)
    vhalf = -35 (mV)
    slope = 8 (mV)
    tau = 40 (ms)
}

ASSIGNED {
    v (mV)
    ek (mV)
    ik (mA/cm2)
}

STATE { n }

BREAKPOINT {
    SOLVE states METHOD cnexp
    ik = gbar * n * (v - ek)
}

INITIAL { n = opened(v) }

DERIVATIVE states { n' = (opened(v) - n) / tau }

FUNCTION opened(v (mV)) { opened = 1 / (1 + exp(-(v - vhalf) / slope)) }
