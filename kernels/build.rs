//! Compiles the kernels of `cuda/`: with the feature `cuda-emu` for the emulator, and with `cuda` for
//! devices. Without these features, nothing.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(any(feature = "cuda", feature = "cuda-emu"))]
    println!("cargo:rerun-if-changed=cuda");
    #[cfg(feature = "cuda-emu")]
    emulator::build();
    #[cfg(feature = "cuda")]
    {
        let toolkit = device::toolkit();
        device::compile(&toolkit);
        lazy::build(&toolkit);
    }
}

/// The kernels for devices.
#[cfg(feature = "cuda")]
mod device {
    use std::{
        env,
        fmt::Write,
        fs,
        path::{Path, PathBuf},
        process::Command,
    };

    /// Compute capabilities times ten, ascending. A device takes the last that it can run.
    const ARCHITECTURES: [u32; 6] = [80, 86, 89, 90, 100, 120];

    /// The CUDA toolkit: CUDA_HOME, or where the nvcc of PATH is.
    pub fn toolkit() -> PathBuf {
        println!("cargo:rerun-if-env-changed=CUDA_HOME");
        let has_nvcc = |home: &PathBuf| home.join("bin/nvcc").is_file();
        let of_path = || {
            let path = env::var_os("PATH")?;
            let folders = env::split_paths(&path).filter_map(|bin| Some(bin.parent()?.to_owned()));
            folders.into_iter().find(has_nvcc)
        };
        let home = env::var_os("CUDA_HOME").map(PathBuf::from).filter(has_nvcc).or_else(of_path);
        home.expect("no nvcc in CUDA_HOME or PATH: kernels/cuda/toolchain.sh sets one up")
    }

    pub fn compile(toolkit: &Path) {
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
        let (mut ptx, mut cubins, mut names) = (String::new(), String::new(), String::new());
        for of in ARCHITECTURES {
            let path = nvcc(toolkit, &out, "ptx", ("compute", of));
            write!(ptx, "({of}, include_str!({path:?})),").expect("to a string");
        }
        for of in machine_code() {
            let path = nvcc(toolkit, &out, "cubin", ("sm", of));
            write!(cubins, "({of}, include_bytes!({path:?})),").expect("to a string");
        }
        for name in kernels() {
            write!(names, "{name:?},").expect("to a string");
        }
        let source = format!(
            "/// Compute capability times ten, and the kernels for it, as text.\n\
             const PTX: &[(u32, &str)] = &[{ptx}];\n\
             /// The same as machine code, where it was asked for.\n\
             const CUBINS: &[(u32, &[u8])] = &[{cubins}];\n\
             const KERNELS: &[&str] = &[{names}];\n"
        );
        fs::write(out.join("images.rs"), source).expect("OUT_DIR takes files");
    }

    /// Compiles all kernels to one form, for one architecture.
    fn nvcc(toolkit: &Path, out: &Path, form: &str, (kind, of): (&str, u32)) -> PathBuf {
        let path = out.join(format!("kernels.{of}.{form}"));
        let status = Command::new(toolkit.join("bin/nvcc"))
            .args([&format!("-{form}"), "-O3", "-std=c++17", "cuda/kernels.cu", "-o"])
            .arg(&path)
            .arg(format!("-arch={kind}_{of}"))
            .status();
        let done = status.as_ref().is_ok_and(|status| status.success());
        assert!(done, "nvcc failed for {kind}_{of}: {status:?}");
        path
    }

    /// The architectures that KEEPWELL_CUDA_CUBIN asks machine code for: `all`, or some like
    /// `sm_90,sm_100`. Without it the driver compiles the text, when the server first starts.
    fn machine_code() -> Vec<u32> {
        const VARIABLE: &str = "KEEPWELL_CUDA_CUBIN";
        println!("cargo:rerun-if-env-changed={VARIABLE}");
        let number = |name: &str| {
            let number = name.strip_prefix("sm_").and_then(|number| number.parse().ok());
            number.unwrap_or_else(|| panic!("{VARIABLE}: `{name}` is neither `all` nor like sm_90"))
        };
        match env::var(VARIABLE).unwrap_or_default().as_str() {
            "" => Vec::new(),
            "all" => ARCHITECTURES.to_vec(),
            some => some.split(',').map(number).collect(),
        }
    }

    /// The names of all kernels.
    fn kernels() -> Vec<String> {
        let mut names = Vec::new();
        for entry in fs::read_dir("cuda").expect("the kernels are there").flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "cu") {
                let text = fs::read_to_string(entry.path()).expect("kernels are text");
                let name =
                    |line: &str| Some(line.strip_prefix("KERNEL(")?.split(',').next()?.to_owned());
                names.extend(text.lines().filter_map(name));
            }
        }
        names
    }
}

/// Stand-ins for the functions of NVIDIA's libraries, which look for the library at the first call
/// (`cuda/lazy/lazy.c`). candle links these libraries; a program that did so would not even start
/// where there is no driver.
#[cfg(feature = "cuda")]
mod lazy {
    use std::{collections::BTreeSet, env, fmt::Write, fs, path::Path};

    /// Headers of the toolkit, how their functions' names begin, and the library's place in lazy.c.
    const LIBRARIES: [(&[&str], &str); 5] = [
        (&["cuda.h"], "cu"),
        (&["cublas_v2.h", "cublas_api.h"], "cublas"),
        (&["cublasLt.h"], "cublasLt"),
        (&["curand.h"], "curand"),
        (&["nvrtc.h"], "nvrtc"),
    ];

    pub fn build(toolkit: &Path) {
        let is = |name: &str, value: &str| env::var(name).is_ok_and(|found| found == value);
        if !is("CARGO_CFG_TARGET_ARCH", "x86_64") || !is("CARGO_CFG_TARGET_OS", "linux") {
            println!("cargo:warning=the program will need NVIDIA's libraries to start");
            return;
        }
        let out = env::var("OUT_DIR").expect("cargo sets it");
        let out = Path::new(&out);
        let mut known = BTreeSet::new();
        let (mut code, mut slots, mut names) = (String::new(), String::new(), String::new());
        for (library, (headers, prefix)) in LIBRARIES.iter().enumerate() {
            for header in *headers {
                let path = toolkit.join("include").join(header);
                let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
                for name in functions(&text, prefix) {
                    if !known.insert(name.to_owned()) {
                        continue;
                    }
                    let index = known.len() - 1;
                    writeln!(
                        code,
                        ".globl {name}\n.hidden {name}\n.type {name}, @function\n\
                         {name}: jmp *keepwell_lazy_slots+{}(%rip)\n\
                         1: pushq ${index}\njmp keepwell_lazy_enter\n\
                         .pushsection .data.rel.keepwell_lazy\n.quad 1b\n.popsection",
                        8 * index
                    )
                    .expect("to a string");
                    write!(names, "{{{library}, {name:?}}},").expect("to a string");
                }
            }
        }
        slots.push_str(
            ".section .data.rel.keepwell_lazy,\"aw\"\n.p2align 3\n.globl keepwell_lazy_slots\n\
             .hidden keepwell_lazy_slots\nkeepwell_lazy_slots:\n.text\n",
        );
        let end = ".section .note.GNU-stack,\"\",@progbits\n";
        fs::write(out.join("lazy.S"), format!("{slots}{code}{end}")).expect("OUT_DIR takes files");
        fs::write(out.join("lazy_names.h"), names).expect("OUT_DIR takes files");
        let mut build = cc::Build::new();
        build.file(out.join("lazy.S")).file("cuda/lazy/lazy.c").include(out).cargo_metadata(false);
        build.compile("keepwell_lazy");
        // What is defined here is not looked for in a shared library, and so needs none.
        println!("cargo:rustc-link-search=native={}", out.display());
        println!("cargo:rustc-link-lib=static:+whole-archive,-bundle=keepwell_lazy");
        // candle's own kernels want the CUDA runtime: its static form looks for the driver itself.
        println!("cargo:rustc-link-search=native={}", toolkit.join("lib64").display());
        println!("cargo:rustc-link-search=native={}", toolkit.join("lib").display());
        println!("cargo:rustc-link-lib=static:-bundle=cudart_static");
    }

    /// Words that begin with `prefix` and a capital. Types are among them, which does no harm.
    fn functions<'a>(text: &'a str, prefix: &str) -> impl Iterator<Item = &'a str> {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        text.split(move |c| !is_word(c)).filter(move |word| {
            let rest = word.strip_prefix(prefix).unwrap_or_default();
            // cublas.h knows a handle of cublasLt.
            let is_other = prefix == "cublas" && rest.starts_with("Lt");
            rest.starts_with(|c: char| c.is_ascii_uppercase()) && !is_other
        })
    }
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
            "    __syncthreads(); // queries and pages were read\n",
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
            "        __syncthreads(); // the keys were read\n",
            "",
        ),
        (
            "attention_prefill reads the values before they are there",
            "attention_prefill.cu",
            "tile);\n        __syncthreads();\n        rows.add_values",
            "tile);\n        rows.add_values",
        ),
        (
            "attention_decode reads a page before it has come",
            "attention_decode.cu",
            "        wait_copies<1>();\n",
            "",
        ),
        (
            "attention_decode reads a page that came for another thread",
            "attention_decode.cu",
            "        wait_copies<1>();\n        __syncwarp();\n",
            "        wait_copies<1>();\n",
        ),
        (
            "attention_decode fetches the next page over the one that it reads",
            "attention_decode.cu",
            "fetched + (turn ^ 1) * a.cache.page_bytes",
            "fetched + turn * a.cache.page_bytes",
        ),
        (
            "attention_prefill_mma overwrites keys that others still read",
            "attention_prefill_mma.cu",
            "        __syncthreads(); // the keys were read\n",
            "",
        ),
        (
            "attention_prefill_mma takes values the wrong way round",
            "attention_prefill_mma.cu",
            "load_transposed(v,",
            "load_matrices(v,",
        ),
        (
            "attention_prefill_mma loads from rows that are not aligned",
            "attention_prefill_mma.cu",
            "stride = width + 8;",
            "stride = width + 4;",
        ),
        (
            "linear writes a row that x does not have",
            "linear.cu",
            "if (lane == 0 && row < count)",
            "if (lane == 0 && row <= count)",
        ),
        (
            "write_kv turns rows that are not there yet",
            "write_kv.cu",
            "    __syncthreads();\n    const bool is_query",
            "    const bool is_query",
        ),
        (
            "linear_mma loads a stage that others still read",
            "linear_mma.cu",
            "        __syncthreads(); // the stage was read\n",
            "",
        ),
        (
            "linear_mma takes the high halves of codes for the low ones",
            "linear_mma.cu",
            "low & 0x0f0f0f0fu : low;",
            "low >> 4 & 0x0f0f0f0fu : low;",
        ),
        ("linear_mma does not end its copies", "linear_mma.cu", "        end_copies();\n", ""),
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
            "histogram counts before its counts are zero",
            "attribution.cu",
            "counts[threadIdx.x] = 0;\n    __syncthreads();",
            "counts[threadIdx.x] = 0;",
        ),
        (
            "histogram writes counts that others still add to",
            "attribution.cu",
            "    __syncthreads();\n    if (threadIdx.x < BINS) a.counts",
            "    if (threadIdx.x < BINS) a.counts",
        ),
        (
            "copy_pages copies a line too many",
            "compact.cu",
            "i < a.page_bytes / sizeof(uint4)",
            "i <= a.page_bytes / sizeof(uint4)",
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
        let mut build = compiler(Path::new("cuda"), 2);
        build.file("cuda/emu/emu.cc").file("cuda/emu/warp.cc").compile("keepwell_emu");
        compile_kernels(Path::new("cuda"), 2, "kernels", "keepwell_emu_find");
        for (index, broken) in BROKEN.iter().enumerate() {
            let folder = out.join(format!("broken_{index}"));
            break_kernels(&folder, broken);
            let find = format!("keepwell_emu_find_broken_{index}");
            // There are many, and they run little.
            compile_kernels(&folder, 0, &format!("broken_{index}"), &find);
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

    fn compiler(kernels: &Path, opt_level: u32) -> cc::Build {
        let mut build = cc::Build::new();
        // As precise as the devices' own arithmetic: no products fused where rounding is told.
        build.cpp(true).std("c++17").opt_level(opt_level).flag("-ffp-contract=off");
        build.flag_if_supported("-Wno-unknown-pragmas").flag_if_supported("-Wno-unused-function");
        build.include(kernels).include("cuda/emu").define("KEEPWELL_EMULATED", None);
        build
    }

    fn compile_kernels(folder: &Path, opt_level: u32, namespace: &str, find: &str) {
        let mut build = compiler(folder, opt_level);
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
