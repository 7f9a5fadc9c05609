NEURON {
    SUFFIX nfbroken
    NONSPECIFIC_CURRENT i
}

ASSIGNED { i (milliamp/cm2) }

BREAKPOINT { i = 3 * * 4 }
