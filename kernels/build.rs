//! Compiles the kernels of `cuda/`: with the feature `cuda-emu` for the emulator, and with `cuda` for
//! devices. Without these features, nothing.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(any(feature = "cuda", feature = "cuda-emu"))]
    println!("cargo:rerun-if-changed=cuda");
    #[cfg(feature = "cuda-emu")]
    emulator::build();
}

#[cfg(feature = "cuda-emu")]
mod emulator {
    use std::{env, fmt::Write, fs, path::Path};

    /// What is broken on purpose, for the tests of the emulator: a name, a file, a line of it, and
    /// what takes its place. Every occurrence is replaced.
    const BROKEN: &[(&str, &str, &str, &str)] = &[
        (
            "rms_norm adds up the warps' sums before they are there",
            "activation.cu",
            "    __syncthreads();\n    sum = 0.0f;",
            "    sum = 0.0f;",
        ),
        (
            "rms_norm reads one float too many",
            "activation.cu",
            "i < a.width; i += blockDim.x) sum +=",
            "i <= a.width; i += blockDim.x) sum +=",
        ),
        (
            "silu_mul writes one float too many",
            "activation.cu",
            "if (i >= a.rows * a.half) return;",
            "if (i > a.rows * a.half) return;",
        ),
        (
            "only some threads of rms_norm come to the barrier",
            "activation.cu",
            "    __syncthreads();\n    sum = 0.0f;",
            "    if (threadIdx.x < 40) __syncthreads();\n    sum = 0.0f;",
        ),
        (
            "attention_decode overwrites queries that others still read",
            "attention_decode.cu",
            "    __syncthreads(); // the queries were read\n",
            "",
        ),
        (
            "attention_decode leaves out the last token of a page",
            "attention_decode.cu",
            "team.works() && index < page.len",
            "team.works() && index + 1 < page.len",
        ),
        (
            "attention_prefill overwrites keys that others still read",
            "attention_prefill.cu",
            "            __syncthreads(); // the keys were read\n",
            "",
        ),
        (
            "attention_prefill reads the values before they are there",
            "attention_prefill.cu",
            "tile);\n            __syncthreads();\n            rows.add_values",
            "tile);\n            rows.add_values",
        ),
        (
            "the rotation overwrites what others still read",
            "common.cuh",
            "            __syncthreads();\n            if (i < head_dim) x[row",
            "            if (i < head_dim) x[row",
        ),
        (
            "half of a warp leaves before a shuffle",
            "attribution.cu",
            "    const float score = team.sum(dot(tile.q + at, k));",
            "    if (threadIdx.x % WARP >= 16) return 0.0f;\n    const float score = team.sum(dot(tile.q + at, k));",
        ),
        (
            "attribution loads a tile that others still read",
            "attribution.cu",
            "        __syncthreads(); // the tile before was read\n",
            "",
        ),
        (
            "compact lifts one move too many",
            "compact.cu",
            "if (index >= a.num_moves) return;",
            "if (index > a.num_moves) return;",
        ),
    ];

    pub fn build() {
        let out = env::var("OUT_DIR").expect("cargo sets it");
        let out = Path::new(&out);
        let mut table = String::new();
        let mut build = compiler(Path::new("cuda"));
        build.file("cuda/emu/emu.cc").compile("keepwell_emu");
        compile_kernels(Path::new("cuda"), "kernels", "keepwell_emu_find");
        for (index, broken) in BROKEN.iter().enumerate() {
            let folder = out.join(format!("broken_{index}"));
            break_kernels(&folder, broken);
            let find = format!("keepwell_emu_find_broken_{index}");
            compile_kernels(&folder, &format!("broken_{index}"), &find);
            write!(table, "Broken {{ what: {:?}, find: {find} }},", broken.0).expect("to a string");
        }
        let names = (0..BROKEN.len()).map(|index| {
            format!("fn keepwell_emu_find_broken_{index}(name: *const c_char) -> Option<Kernel>;")
        });
        let names: String = names.collect();
        let source = format!(
            "unsafe extern \"C\" {{ {names} }}\n\
             /// Every way in which kernels were broken.\n\
             pub fn broken() -> Vec<Broken> {{ vec![{table}] }}\n"
        );
        fs::write(out.join("broken.rs"), source).expect("OUT_DIR takes files");
    }

    fn compiler(kernels: &Path) -> cc::Build {
        let mut build = cc::Build::new();
        // As precise as the devices' own arithmetic: no products fused where rounding is told.
        build.cpp(true).std("c++17").opt_level(2).flag("-ffp-contract=off");
        build.flag_if_supported("-Wno-unknown-pragmas").flag_if_supported("-Wno-unused-function");
        build.include(kernels).include("cuda/emu").define("KEEPWELL_EMULATED", None);
        build
    }

    fn compile_kernels(folder: &Path, namespace: &str, find: &str) {
        let mut build = compiler(folder);
        build.define("KERNELS", namespace).define("FIND", find);
        build.file("cuda/emu/kernels.cc").compile(find);
    }

    /// A copy of all kernels in which something was replaced.
    fn break_kernels(folder: &Path, (what, file, from, to): &(&str, &str, &str, &str)) {
        fs::create_dir_all(folder).expect("OUT_DIR takes folders");
        for entry in fs::read_dir("cuda").expect("the kernels are there").flatten() {
            let path = entry.path();
            if !path.is_file() {
                continue;
            }
            let text = fs::read_to_string(&path).expect("kernels are text");
            let is_it = entry.file_name() == *file;
            assert!(!is_it || text.contains(from), "{what}: {file} no longer has it");
            let text = if is_it { text.replace(from, to) } else { text };
            fs::write(folder.join(entry.file_name()), text).expect("OUT_DIR takes files");
        }
    }
}
