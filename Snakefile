# The workflow itself is in workflow/; this file only lets a bare `snakemake` in the repository's root find it.
include: "workflow/Snakefile"


rule default:
    default_target: True
    input:
        rules.all.input,
    localrule: True
