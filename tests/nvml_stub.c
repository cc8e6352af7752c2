/* A stand-in for libnvidia-ml.so.1: the calls of NVML that the package makes, answered from the JSON
 * file that the environment variable NVML_STUB names.
 *
 *     {"driver": "570.133.20", "cuda": 12080, "init_error": 9, "count_error": 999, "shutdown_error": 999,
 *      "real_time": false, "gpm_room": 2, "gpus": [{"name": "NVIDIA H200", "uuid": "GPU-1", "memory_mib": 143771, ...}]}
 *
 * `gpm_room`: for so many samples of GPM there is memory. Any value of a GPU may be {"error": CODE}, {"over_time": [[SECONDS, VALUE], ...]} (steps; what comes
 * before the first is NOT_SUPPORTED) or {"ramp": [[SECONDS, NUMBER], ...]} (linear between the points,
 * flat outside). Seconds count from the process's first nvmlInit, on the real clock unless `real_time` is
 * false, plus what stub_advance has added. What is left out is NOT_SUPPORTED. The keys of a GPU:
 *
 *     name uuid cc mig c2c            mig, ecc: the mode, or [now, pending]
 *     handle                          {"error": 4} withholds the whole device
 *     lost_at                         from that second on each call on this GPU gives GPU_IS_LOST
 *     hangs_at                        from that second on no call on this GPU comes back
 *     memory_mib memory_used_mib memory_reserved_mib
 *     pci                             {"bus_id": "00000000:01:00.0", "device": N, "subsystem": N}
 *     power_limit power_limit_default power_limit_range     mW
 *     clock clock_max                 {"sm": MHz, "memory": MHz, "graphics": MHz}
 *     persistence ecc compute_mode addressing_mode numa_node pstate temperature clock_reasons
 *     pcie_generation pcie_width pcie_generation_max pcie_width_max pcie_generation_gpu_max
 *     nvlinks nvlink_version          nvlinks: the state of each link, as in [1, 1, 0]
 *     cpu_affinity memory_affinity    bit masks, of one word
 *     utilisation                     [GPU, memory], percent
 *     power energy                    mW, mJ
 *     fields field_types              {"186": VALUE, "186/1": VALUE of scope 1}, {"186": NVML's value type}
 *     processes graphics_processes    [{"pid": N, "memory_mib": N or null where it is not available}]
 *     slices slices_max               MIG devices: [{"name":, "uuid":, "memory_mib":, "gpu_instance":,
 *                                     "compute_instance":, ...}], null for an index that is free
 *     xid                             [[SECONDS, CODE], ...]: what nvmlEventSetWait reports
 *     gpm                             {"100": MIB, ...}: what has passed by a metric that is told in MiB/s; left out,
 *                                     GPM is not supported; an error is that of nvmlGpmSampleGet
 *
 * Built with -DOLD_DRIVER, the library lacks the functions that came late, so that their lookup fails.
 */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    TIMEOUT = 10,
    GPU_IS_LOST = 15,
    MEMORY = 20,
    ARGUMENT_VERSION_MISMATCH = 25,
    UNKNOWN = 999
};

/* ---- JSON ---- */

typedef enum { ABSENT, NUMBER, TEXT, ARRAY, OBJECT } kind_t;

typedef struct node {
    kind_t kind; /* ABSENT stands for null */
    double number;
    char *text;
    char *key;           /* within an object */
    struct node *first;  /* of an array or an object */
    struct node *next;   /* sibling */
    struct node *parent; /* of a MIG device: its GPU */
} node_t;

static const char *at; /* where the reader stands; NULL after a mistake */

static void skip_space(void) {
    while (at && isspace((unsigned char)*at))
        at++;
}

static int take(char wanted) {
    skip_space();
    if (!at || *at != wanted)
        return 0;
    at++;
    return 1;
}

static char *read_text(void) {
    char *out = malloc(strlen(at) + 1), *end = out;
    while (*at && *at != '"') {
        if (*at == '\\')
            at++;
        *end++ = *at++;
    }
    *end = '\0';
    at = *at ? at + 1 : NULL;
    return out;
}

static node_t *read_node(void);

static void read_children(node_t *node, char close) {
    node_t **last = &node->first;
    if (take(close))
        return;
    do {
        char *key = NULL;
        if (node->kind == OBJECT) {
            if (!take('"') || !(key = read_text()) || !take(':'))
                at = NULL;
        }
        if (!at)
            return;
        *last = read_node();
        (*last)->key = key;
        (*last)->parent = node;
        last = &(*last)->next;
    } while (take(','));
    if (!take(close))
        at = NULL;
}

static int take_word(const char *word) {
    if (strncmp(at, word, strlen(word)))
        return 0;
    at += strlen(word);
    return 1;
}

static node_t *read_node(void) {
    node_t *node = calloc(1, sizeof *node);
    skip_space();
    if (!at)
        return node;
    if (take('{')) {
        node->kind = OBJECT;
        read_children(node, '}');
    } else if (take('[')) {
        node->kind = ARRAY;
        read_children(node, ']');
    } else if (take('"')) {
        node->kind = TEXT;
        node->text = read_text();
    } else if (take_word("true")) {
        node->kind = NUMBER;
        node->number = 1;
    } else if (take_word("false")) {
        node->kind = NUMBER;
    } else if (!take_word("null")) {
        char *end;
        node->kind = NUMBER;
        node->number = strtod(at, &end);
        at = end == at ? NULL : end;
    }
    return node;
}

static node_t *member(const node_t *object, const char *key) {
    node_t *child = object && object->kind == OBJECT ? object->first : NULL;
    while (child && strcmp(child->key, key))
        child = child->next;
    return child;
}

static node_t *element(const node_t *array, unsigned int index) {
    node_t *child = array && array->kind == ARRAY ? array->first : NULL;
    while (child && index--)
        child = child->next;
    return child;
}

static unsigned int length_of(const node_t *array) {
    unsigned int length = 0;
    while (element(array, length))
        length++;
    return length;
}

/* ---- the machine ---- */

typedef node_t *device_t; /* a device's handle is its part of the file */

static node_t *machine;
static int sessions;
static int began;
static double began_at, advanced;

static double clock_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static double number_in(const node_t *object, const char *key, double otherwise) {
    const node_t *found = member(object, key);
    return found && found->kind == NUMBER ? found->number : otherwise;
}

static double elapsed(void) {
    return advanced + (number_in(machine, "real_time", 1) ? clock_now() - began_at : 0);
}

static int read_machine(void) {
    const char *path = getenv("NVML_STUB");
    FILE *file = path ? fopen(path, "r") : NULL;
    static char text[1 << 20];
    if (!file)
        return UNKNOWN;
    text[fread(text, 1, sizeof text - 1, file)] = '\0';
    fclose(file);
    at = text;
    machine = read_node();
    if (!at) {
        fprintf(stderr, "nvml_stub: %s is not JSON\n", path);
        return UNKNOWN;
    }
    if (!began) {
        began = 1;
        began_at = clock_now();
    }
    return SUCCESS;
}

/* How often each key was asked for, so that tests see what is not asked again. */
static struct {
    char key[40];
    int times;
} asked[100];

static void count_asked(const char *key) {
    unsigned int i = 0;
    while (i < 99 && *asked[i].key && strcmp(asked[i].key, key))
        i++;
    snprintf(asked[i].key, sizeof asked[i].key, "%s", key);
    asked[i].times++;
}

static node_t *step_at(node_t *steps, double now) {
    node_t *value = NULL;
    for (node_t *step = steps->first; step && element(step, 0)->number <= now; step = step->next)
        value = element(step, 1);
    return value;
}

/* A ramp's value is given out in the node of its first point's parent, which nothing else uses. */
static node_t *ramp_at(node_t *points, double now) {
    node_t *before = NULL, *point = points->first;
    while (point && element(point, 0)->number <= now) {
        before = point;
        point = point->next;
    }
    if (!before || !point) {
        points->number = element(before ? before : points->first, 1)->number;
    } else {
        double from = element(before, 0)->number, to = element(point, 0)->number;
        double low = element(before, 1)->number, high = element(point, 1)->number;
        points->number = low + (high - low) * (now - from) / (to - from);
    }
    return points;
}

/* What a scripted value is at some time; returns the call's code. */
static int resolve_at(node_t *value, double now, node_t **out) {
    node_t *scripted;
    if ((scripted = member(value, "over_time")))
        value = step_at(scripted, now);
    if ((scripted = member(value, "ramp")))
        value = ramp_at(scripted, now);
    if (!value)
        return NOT_SUPPORTED;
    if ((scripted = member(value, "error")))
        return (int)scripted->number;
    *out = value;
    return SUCCESS;
}

static int resolve(node_t *value, node_t **out) { return resolve_at(value, elapsed(), out); }

static int is_lost(device_t gpu) {
    const node_t *slices = gpu->parent; /* a slice goes with its GPU */
    if (slices && slices->key && !strcmp(slices->key, "slices"))
        return is_lost(slices->parent);
    return member(gpu, "lost_at") && elapsed() >= number_in(gpu, "lost_at", 0);
}

static void hang(void) {
    for (;;)
        pause();
}

static int look_up(device_t gpu, const char *key, node_t **out) {
    if (!sessions)
        return UNINITIALIZED;
    if (!gpu)
        return INVALID_ARGUMENT;
    if (member(gpu, "hangs_at") && elapsed() >= number_in(gpu, "hangs_at", 0))
        hang();
    count_asked(key);
    return is_lost(gpu) ? GPU_IS_LOST : resolve(member(gpu, key), out);
}

static int copy(const char *text, char *out, unsigned int length) {
    if (strlen(text) >= length)
        return INSUFFICIENT_SIZE;
    strcpy(out, text);
    return SUCCESS;
}

static int text_of(device_t gpu, const char *key, char *out, unsigned int length) {
    node_t *value;
    int code = look_up(gpu, key, &value);
    if (!code && value->kind != TEXT)
        return NOT_SUPPORTED;
    return code ? code : copy(value->text, out, length);
}

static int number_of(device_t gpu, const char *key, unsigned int *out) {
    node_t *value;
    int code = look_up(gpu, key, &value);
    if (!code)
        *out = (unsigned int)value->number;
    return code;
}

static int big_number_of(device_t gpu, const char *key, unsigned long long *out) {
    node_t *value;
    int code = look_up(gpu, key, &value);
    if (!code)
        *out = (unsigned long long)value->number;
    return code;
}

/* Two numbers of an array, or one number twice. */
static int pair_of(device_t gpu, const char *key, unsigned int *first, unsigned int *second) {
    node_t *value;
    int code = look_up(gpu, key, &value);
    if (!code) {
        const node_t *one = value->kind == ARRAY ? element(value, 0) : value;
        const node_t *other = value->kind == ARRAY ? element(value, 1) : value;
        *first = (unsigned int)one->number;
        *second = (unsigned int)other->number;
    }
    return code;
}

/* A number of an object that a key names. */
static int named_of(device_t gpu, const char *key, const char *name, unsigned int *out) {
    node_t *value;
    int code = look_up(gpu, key, &value);
    if (!code)
        code = resolve(member(value, name), &value);
    if (!code)
        *out = (unsigned int)value->number;
    return code;
}

/* ---- for the tests ---- */

/* How many sessions were begun and not ended. */
int stub_sessions(void) { return sessions; }

/* Lets so many seconds pass. */
void stub_advance(double seconds) { advanced += seconds; }

/* How often the key has been asked for, of all GPUs together. */
int stub_asked(const char *key) {
    for (unsigned int i = 0; i < 100; i++)
        if (!strcmp(asked[i].key, key))
            return asked[i].times;
    return 0;
}

static int gpm_samples;

/* How many samples of GPM were allocated and not freed. */
int stub_gpm_samples(void) { return gpm_samples; }

/* Forgets sessions, time and counts, as a new process does. */
void stub_reset(void) {
    sessions = began = gpm_samples = 0;
    advanced = 0;
    memset(asked, 0, sizeof asked);
}

/* ---- the library and the system ---- */

int nvmlInitWithFlags(unsigned int flags) {
    int code = flags ? INVALID_ARGUMENT : sessions ? SUCCESS : read_machine();
    if (!code)
        code = (int)number_in(machine, "init_error", 0);
    if (!code && number_in(machine, "init_hangs", 0))
        hang();
    if (!code)
        sessions++;
    return code;
}

int nvmlShutdown(void) {
    if (!sessions)
        return UNINITIALIZED;
    sessions--;
    return (int)number_in(machine, "shutdown_error", 0);
}

const char *nvmlErrorString(int code) {
    static char text[40];
    snprintf(text, sizeof text, "stub error %d", code);
    return text;
}

int nvmlSystemGetDriverVersion(char *out, unsigned int length) { return text_of(machine, "driver", out, length); }

/* ---- devices ---- */

int nvmlDeviceGetCount_v2(unsigned int *out) {
    if (!sessions)
        return UNINITIALIZED;
    *out = length_of(member(machine, "gpus"));
    return (int)number_in(machine, "count_error", 0);
}

static int handle_of(node_t *gpu, device_t *out) {
    node_t *unused;
    int code;
    if (!gpu)
        return NOT_FOUND;
    code = look_up(gpu, "handle", &unused);
    *out = gpu;
    return code == NOT_SUPPORTED ? SUCCESS : code;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, device_t *out) {
    node_t *gpu = element(member(machine, "gpus"), index);
    return gpu ? handle_of(gpu, out) : INVALID_ARGUMENT;
}

static int has_text(node_t *device, const char *key, const char *text) {
    const node_t *found = member(device, key);
    return found && found->kind == TEXT && !strcmp(found->text, text);
}

int nvmlDeviceGetHandleByUUID(const char *uuid, device_t *out) {
    node_t *gpus = member(machine, "gpus");
    for (node_t *gpu = gpus ? gpus->first : NULL; gpu; gpu = gpu->next) {
        node_t *slices = member(gpu, "slices");
        if (has_text(gpu, "uuid", uuid))
            return handle_of(gpu, out);
        for (node_t *slice = slices ? slices->first : NULL; slice; slice = slice->next)
            if (has_text(slice, "uuid", uuid))
                return handle_of(slice, out);
    }
    return NOT_FOUND;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, device_t *out) {
    node_t *gpus = member(machine, "gpus");
    for (node_t *gpu = gpus ? gpus->first : NULL; gpu; gpu = gpu->next)
        if (has_text(member(gpu, "pci"), "bus_id", bus_id))
            return handle_of(gpu, out);
    return NOT_FOUND;
}

int nvmlDeviceGetName(device_t gpu, char *out, unsigned int length) { return text_of(gpu, "name", out, length); }

int nvmlDeviceGetUUID(device_t gpu, char *out, unsigned int length) { return text_of(gpu, "uuid", out, length); }

int nvmlDeviceGetCudaComputeCapability(device_t gpu, int *major, int *minor) {
    node_t *value;
    int code = look_up(gpu, "cc", &value);
    if (!code) {
        *major = (int)value->number;
        *minor = (int)((value->number - *major) * 10 + 0.5);
    }
    return code;
}

typedef struct {
    char bus_id_legacy[16];
    unsigned int domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
} pci_info_t;

int nvmlDeviceGetPciInfo_v3(device_t gpu, pci_info_t *out) {
    node_t *value, *bus_id;
    int code = look_up(gpu, "pci", &value);
    if (code)
        return code;
    memset(out, 0, sizeof *out);
    bus_id = member(value, "bus_id");
    if (bus_id) {
        copy(bus_id->text, out->bus_id, sizeof out->bus_id);
        snprintf(out->bus_id_legacy, sizeof out->bus_id_legacy, "%.12s", bus_id->text + 4);
        sscanf(bus_id->text, "%x:%x:%x", &out->domain, &out->bus, &out->device);
    }
    out->device_id = (unsigned int)number_in(value, "device", 0);
    out->subsystem_id = (unsigned int)number_in(value, "subsystem", 0);
    return SUCCESS;
}

/* ---- memory ---- */

typedef struct {
    unsigned long long total, free, used;
} memory_t;

typedef struct {
    unsigned int version;
    unsigned long long total, reserved, free, used;
} memory_v2_t;

/* NVML's first form counts what the driver reserves as used, the second one by itself. */
int nvmlDeviceGetMemoryInfo_v2(device_t gpu, memory_v2_t *out) {
    unsigned int total = 0, used = 0, reserved = 0;
    int code = number_of(gpu, "memory_mib", &total);
    int used_code = number_of(gpu, "memory_used_mib", &used);
    number_of(gpu, "memory_reserved_mib", &reserved);
    if (code || (used_code && used_code != NOT_SUPPORTED))
        return code ? code : used_code;
    out->total = (unsigned long long)total << 20;
    out->reserved = (unsigned long long)reserved << 20;
    out->used = (unsigned long long)used << 20;
    out->free = out->total - out->reserved - out->used;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(device_t gpu, memory_t *out) {
    memory_v2_t memory;
    int code = nvmlDeviceGetMemoryInfo_v2(gpu, &memory);
    if (!code) {
        out->total = memory.total;
        out->free = memory.free;
        out->used = memory.used + memory.reserved;
    }
    return code;
}

/* ---- settings ---- */

#define NUMBER_CALL(function, key) \
    int function(device_t gpu, unsigned int *out) { return number_of(gpu, key, out); }

NUMBER_CALL(nvmlDeviceGetEnforcedPowerLimit, "power_limit")
NUMBER_CALL(nvmlDeviceGetPowerManagementDefaultLimit, "power_limit_default")
NUMBER_CALL(nvmlDeviceGetPersistenceMode, "persistence")
NUMBER_CALL(nvmlDeviceGetComputeMode, "compute_mode")
NUMBER_CALL(nvmlDeviceGetCurrPcieLinkGeneration, "pcie_generation")
NUMBER_CALL(nvmlDeviceGetCurrPcieLinkWidth, "pcie_width")
NUMBER_CALL(nvmlDeviceGetMaxPcieLinkGeneration, "pcie_generation_max")
NUMBER_CALL(nvmlDeviceGetMaxPcieLinkWidth, "pcie_width_max")
NUMBER_CALL(nvmlDeviceGetPowerUsage, "power")
NUMBER_CALL(nvmlDeviceGetPerformanceState, "pstate")

int nvmlDeviceGetPowerManagementLimitConstraints(device_t gpu, unsigned int *low, unsigned int *high) {
    return pair_of(gpu, "power_limit_range", low, high);
}

int nvmlDeviceGetEccMode(device_t gpu, unsigned int *current, unsigned int *pending) {
    return pair_of(gpu, "ecc", current, pending);
}

static const char *const CLOCKS[] = {"graphics", "sm", "memory", "video"};

int nvmlDeviceGetClockInfo(device_t gpu, unsigned int type, unsigned int *out) {
    return type < 4 ? named_of(gpu, "clock", CLOCKS[type], out) : INVALID_ARGUMENT;
}

int nvmlDeviceGetMaxClockInfo(device_t gpu, unsigned int type, unsigned int *out) {
    return type < 4 ? named_of(gpu, "clock_max", CLOCKS[type], out) : INVALID_ARGUMENT;
}

static int link_of(device_t gpu, unsigned int link, unsigned int *state) {
    node_t *links, *value;
    int code = look_up(gpu, "nvlinks", &links);
    if (code)
        return code;
    if (link >= length_of(links))
        return INVALID_ARGUMENT;
    code = resolve(element(links, link), &value);
    if (!code)
        *state = (unsigned int)value->number;
    return code;
}

int nvmlDeviceGetNvLinkState(device_t gpu, unsigned int link, unsigned int *out) { return link_of(gpu, link, out); }

int nvmlDeviceGetNvLinkVersion(device_t gpu, unsigned int link, unsigned int *out) {
    unsigned int state;
    int code = link_of(gpu, link, &state);
    return code ? code : number_of(gpu, "nvlink_version", out);
}

static int mask_of(device_t gpu, const char *key, unsigned int words, unsigned long *out) {
    unsigned long long mask;
    int code = big_number_of(gpu, key, &mask);
    if (code)
        return code;
    memset(out, 0, words * sizeof *out);
    out[0] = (unsigned long)mask;
    return SUCCESS;
}

int nvmlDeviceGetCpuAffinity(device_t gpu, unsigned int words, unsigned long *out) {
    return mask_of(gpu, "cpu_affinity", words, out);
}

/* ---- what changes while it runs ---- */

int nvmlDeviceGetTemperature(device_t gpu, unsigned int sensor, unsigned int *out) {
    return sensor ? INVALID_ARGUMENT : number_of(gpu, "temperature", out);
}

int nvmlDeviceGetUtilizationRates(device_t gpu, unsigned int *out) {
    return pair_of(gpu, "utilisation", out, out + 1);
}

int nvmlDeviceGetCurrentClocksThrottleReasons(device_t gpu, unsigned long long *out) {
    return big_number_of(gpu, "clock_reasons", out);
}

typedef struct {
    unsigned int field, scope;
    long long timestamp, latency_us;
    unsigned int type, code;
    union {
        double real;
        unsigned int small;
        unsigned long long big;
        long long signed_big;
        int signed_small;
        unsigned short tiny;
    } value;
} field_value_t;

/* Power, remapped rows and C2C are 32-bit numbers, the counters are 64-bit ones. */
static unsigned int type_of_field(device_t gpu, unsigned int field) {
    char name[16];
    int is_small = (field >= 142 && field <= 145) || (field >= 170 && field <= 172) || field == 185 || field == 186;
    snprintf(name, sizeof name, "%u", field);
    return (unsigned int)number_in(member(gpu, "field_types"), name, is_small ? 1 : 3);
}

static void put_field(field_value_t *out, double number) {
    switch (out->type) {
    case 0: out->value.real = number; break;
    case 1: out->value.small = (unsigned int)number; break;
    case 4: out->value.signed_big = (long long)number; break;
    case 5: out->value.signed_small = (int)number; break;
    case 6: out->value.tiny = (unsigned short)number; break;
    default: out->value.big = (unsigned long long)number;
    }
}

int nvmlDeviceGetFieldValues(device_t gpu, int count, field_value_t *out) {
    node_t *fields, *value;
    int code = look_up(gpu, "fields", &fields);
    if (code)
        return code;
    for (int i = 0; i < count; i++) {
        char name[24];
        snprintf(name, sizeof name, out[i].scope ? "%u/%u" : "%u", out[i].field, out[i].scope);
        out[i].timestamp = (long long)(elapsed() * 1e6);
        out[i].latency_us = 10;
        out[i].type = type_of_field(gpu, out[i].field);
        out[i].code = (unsigned int)resolve(member(fields, name), &value);
        if (!out[i].code)
            put_field(&out[i], value->number);
    }
    return SUCCESS;
}

/* ---- Xid events: one set, of one process ---- */

static struct {
    unsigned int count;
    struct {
        device_t gpu;
        unsigned int told;
    } watched[16];
} events;

typedef struct {
    device_t device;
    unsigned long long type, data;
    unsigned int gpu_instance, compute_instance;
} event_t;

enum { XID_CRITICAL_ERROR = 8 };

int nvmlEventSetCreate(void **out) {
    events.count = 0;
    *out = &events;
    return SUCCESS;
}

int nvmlEventSetFree(void *set) { return set == &events ? SUCCESS : INVALID_ARGUMENT; }

int nvmlDeviceGetSupportedEventTypes(device_t gpu, unsigned long long *out) {
    node_t *unused;
    int code = look_up(gpu, "xid", &unused);
    *out = XID_CRITICAL_ERROR;
    return code;
}

int nvmlDeviceRegisterEvents(device_t gpu, unsigned long long types, void *set) {
    node_t *unused;
    int code = look_up(gpu, "xid", &unused);
    if (code)
        return code;
    if (set != &events || !(types & XID_CRITICAL_ERROR) || events.count == 16)
        return INVALID_ARGUMENT;
    events.watched[events.count].gpu = gpu;
    events.watched[events.count++].told = 0;
    return SUCCESS;
}

static int next_event(event_t *out) {
    for (unsigned int i = 0; i < events.count; i++) {
        node_t *event = element(member(events.watched[i].gpu, "xid"), events.watched[i].told);
        if (event && element(event, 0)->number <= elapsed()) {
            events.watched[i].told++;
            memset(out, 0, sizeof *out);
            out->device = events.watched[i].gpu;
            out->type = XID_CRITICAL_ERROR;
            out->data = (unsigned long long)element(event, 1)->number;
            return SUCCESS;
        }
    }
    return TIMEOUT;
}

int nvmlEventSetWait_v2(void *set, event_t *out, unsigned int timeout_ms) {
    struct timespec pause = {timeout_ms / 1000, (long)(timeout_ms % 1000) * 1000000};
    if (set != &events)
        return INVALID_ARGUMENT;
    if (next_event(out) == SUCCESS)
        return SUCCESS;
    nanosleep(&pause, NULL);
    return next_event(out);
}

/* ---- what came late ---- */

#ifndef OLD_DRIVER
int nvmlSystemGetCudaDriverVersion_v2(int *out) { return number_of(machine, "cuda", (unsigned int *)out); }

NUMBER_CALL(nvmlDeviceGetGpuMaxPcieLinkGeneration, "pcie_generation_gpu_max")
NUMBER_CALL(nvmlDeviceGetNumaNodeId, "numa_node")

int nvmlDeviceGetMemoryAffinity(device_t gpu, unsigned int words, unsigned long *out, unsigned int scope) {
    return scope > 1 ? INVALID_ARGUMENT : mask_of(gpu, "memory_affinity", words, out);
}

int nvmlDeviceGetCurrentClocksEventReasons(device_t gpu, unsigned long long *out) {
    return big_number_of(gpu, "clock_reasons", out);
}

int nvmlDeviceGetTotalEnergyConsumption(device_t gpu, unsigned long long *out) {
    return big_number_of(gpu, "energy", out);
}

typedef struct {
    unsigned int version, sensor;
    int celsius;
} temperature_t;

int nvmlDeviceGetTemperatureV(device_t gpu, temperature_t *out) {
    return nvmlDeviceGetTemperature(gpu, out->sensor, (unsigned int *)&out->celsius);
}

int nvmlDeviceGetC2cModeInfoV(device_t gpu, unsigned int *is_enabled) { return number_of(gpu, "c2c", is_enabled); }

typedef struct {
    unsigned int version, mode;
} addressing_mode_t;

int nvmlDeviceGetAddressingMode(device_t gpu, addressing_mode_t *out) {
    return number_of(gpu, "addressing_mode", &out->mode);
}

typedef struct {
    unsigned int pid;
    unsigned long long used_memory;
    unsigned int gpu_instance, compute_instance;
} process_t;

static int processes_of(device_t gpu, const char *key, unsigned int *count, process_t *out) {
    node_t *list;
    unsigned int room = *count;
    int code = look_up(gpu, key, &list);
    if (code)
        return code;
    *count = length_of(list);
    if (*count > room)
        return INSUFFICIENT_SIZE;
    for (unsigned int i = 0; i < *count; i++) {
        node_t *process = element(list, i), *memory = member(process, "memory_mib");
        int is_known = memory && memory->kind == NUMBER;
        out[i].pid = (unsigned int)number_in(process, "pid", 0);
        out[i].used_memory = is_known ? (unsigned long long)memory->number << 20 : ~0ULL;
        out[i].gpu_instance = (unsigned int)number_in(process, "gpu_instance", 4294967295.0);
        out[i].compute_instance = (unsigned int)number_in(process, "compute_instance", 4294967295.0);
    }
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(device_t gpu, unsigned int *count, process_t *out) {
    return processes_of(gpu, "processes", count, out);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(device_t gpu, unsigned int *count, process_t *out) {
    return processes_of(gpu, "graphics_processes", count, out);
}

int nvmlDeviceGetMigMode(device_t gpu, unsigned int *current, unsigned int *pending) {
    return pair_of(gpu, "mig", current, pending);
}

int nvmlDeviceGetMaxMigDeviceCount(device_t gpu, unsigned int *out) {
    int code = number_of(gpu, "slices_max", out);
    *out = code == NOT_SUPPORTED ? 0 : *out; /* as the driver answers for parts without MIG */
    return code == NOT_SUPPORTED ? SUCCESS : code;
}

int nvmlDeviceGetMigDeviceHandleByIndex(device_t gpu, unsigned int index, device_t *out) {
    node_t *slices, *slice;
    int code = look_up(gpu, "slices", &slices);
    if (code)
        return code;
    slice = element(slices, index);
    if (!slice || slice->kind != OBJECT)
        return NOT_FOUND;
    return handle_of(slice, out);
}

/* ---- GPM ---- */

typedef struct {
    device_t gpu; /* NULL until it is taken */
    double at;
} gpm_sample_t;

typedef struct {
    unsigned int metric;
    int code;
    double value;
    struct {
        char *short_name, *long_name, *unit;
    } about;
} gpm_metric_t;

typedef struct {
    unsigned int version, count;
    gpm_sample_t *earlier, *later;
    gpm_metric_t metrics[1]; /* of as many as the header has, which grows */
} gpm_metrics_t;

typedef struct {
    unsigned int version, is_supported;
} gpm_support_t;

enum { GPM_VERSION = 1 };

int nvmlGpmQueryDeviceSupport(device_t gpu, gpm_support_t *out) {
    node_t *unused;
    if (out->version != GPM_VERSION)
        return ARGUMENT_VERSION_MISMATCH;
    if (look_up(gpu, "gpm", &unused) == GPU_IS_LOST)
        return GPU_IS_LOST;
    out->is_supported = member(gpu, "gpm") != NULL;
    return SUCCESS;
}

int nvmlGpmSampleAlloc(gpm_sample_t **out) {
    if (!sessions)
        return UNINITIALIZED;
    if (member(machine, "gpm_room") && gpm_samples >= (int)number_in(machine, "gpm_room", 0))
        return MEMORY;
    *out = calloc(1, sizeof **out);
    gpm_samples++;
    return SUCCESS;
}

int nvmlGpmSampleFree(gpm_sample_t *sample) {
    if (!sessions)
        return UNINITIALIZED;
    if (!sample)
        return INVALID_ARGUMENT;
    gpm_samples--;
    free(sample);
    return SUCCESS;
}

int nvmlGpmSampleGet(device_t gpu, gpm_sample_t *out) {
    node_t *unused;
    int code = look_up(gpu, "gpm", &unused);
    if (code)
        return code;
    count_asked("gpm sample");
    out->gpu = gpu;
    out->at = elapsed();
    return SUCCESS;
}

/* The driver renews what a sample has every 100 ms; one asked for sooner is held against whoever asks. */
int nvmlGpmMetricsGet(gpm_metrics_t *out) {
    double passed = out->later->at - out->earlier->at;
    if (out->version != GPM_VERSION)
        return ARGUMENT_VERSION_MISMATCH;
    if (!out->earlier->gpu || out->earlier->gpu != out->later->gpu || passed <= 0.1)
        return INVALID_ARGUMENT;
    for (unsigned int i = 0; i < out->count; i++) {
        gpm_metric_t *metric = &out->metrics[i];
        node_t *script = NULL, *value;
        double before = 0;
        char name[16];
        snprintf(name, sizeof name, "%u", metric->metric);
        resolve_at(member(out->later->gpu, "gpm"), out->later->at, &script);
        metric->code = resolve_at(member(script, name), out->earlier->at, &value);
        if (!metric->code)
            before = value->number;
        if (!metric->code)
            metric->code = resolve_at(member(script, name), out->later->at, &value);
        if (!metric->code)
            metric->value = (value->number - before) / passed;
    }
    return SUCCESS;
}

static int is_slice(device_t device) {
    return device->parent && device->parent->key && !strcmp(device->parent->key, "slices");
}

int nvmlDeviceIsMigDeviceHandle(device_t device, unsigned int *out) {
    *out = (unsigned int)is_slice(device);
    return SUCCESS;
}

int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device_t slice, device_t *out) {
    if (!is_slice(slice))
        return INVALID_ARGUMENT;
    *out = slice->parent->parent;
    return SUCCESS;
}

NUMBER_CALL(nvmlDeviceGetGpuInstanceId, "gpu_instance")
NUMBER_CALL(nvmlDeviceGetComputeInstanceId, "compute_instance")
#endif
