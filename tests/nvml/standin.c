/* A stand-in for NVIDIA's management library: cards that do what a script says.
 *
 * The script is the text file that the environment variable NVML_SCRIPT names, read at nvmlInit.
 * A line is a word and its values; what follows `card` belongs to that card:
 *
 *   init CODE                       what nvmlInit returns
 *   epoch SECONDS                   zero of the script's time on CLOCK_MONOTONIC
 *   card UUID
 *   power constant W | power ramp FROM TO SECONDS | power square LOW HIGH PERIOD
 *   temperature START PER_SECOND    degrees Celsius
 *   flap C1 C2 ...                  the temperatures of successive readings, over and over; up to 8
 *   hang AT                         from then on no call comes back
 *   delay SECONDS                   every call takes so long, and answers with what is then
 *   unit FACTOR                     the counter counts so many mJ where it should count one
 *   counter TICK BITS START         moves every TICK seconds, wraps at 2^BITS mJ, starts at START J
 *   utilization PERCENT
 *   clock MHZ
 *   memory BYTES
 *   mig UUID                        an instance of this card
 *   fail FUNCTION CODE FROM UNTIL   the function, or `all`, returns CODE in that time
 *   throttle BITS FROM UNTIL
 *   process PID FROM UNTIL
 *   reset AT                        the driver is loaded anew: the counter is 0 then
 *   lost PATH                       the card is off the bus once that file exists
 *
 * Without a `counter`, `power` or `temperature` line, that reading is not supported. standin_time()
 * sets the time by hand, for tests that do not wait; delays then move it, and standin_now() tells it.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6,
       INSUFFICIENT_SIZE = 7, GPU_IS_LOST = 15 };
enum { CARDS = 8, RULES = 32, FLAPS = 8 };

typedef struct { char function[64]; unsigned long long value; double from, until; } rule;
typedef struct {
    char uuid[96], mig[96], shape[16], lost[200];
    double a, b, seconds, warmth, warming, tick, bits, start, reset, delay, hang, unit, flaps[FLAPS];
    int has_power, has_temperature, has_counter;
    unsigned utilization, clock, n_flaps, readings;
    unsigned long long memory;
    rule rules[RULES];
    int n_rules;
} card;

static card cards[CARDS];
static int n_cards = 0, init_code = SUCCESS, initialized = 0;
static double epoch = 0, by_hand = -1;

void standin_time(double seconds) { by_hand = seconds; }

static double now(void) {
    struct timespec t;
    if (by_hand >= 0) return by_hand;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9 - epoch;
}

double standin_now(void) { return now(); }

static void take(double seconds) {
    struct timespec t = {(time_t)seconds, (long)(fmod(seconds, 1) * 1e9)};
    if (by_hand >= 0)
        by_hand += seconds;
    else if (seconds > 0)
        nanosleep(&t, NULL);
}

static double power(const card *c, double t) {
    if (!strcmp(c->shape, "ramp")) return c->a + (c->b - c->a) * fmin(t / c->seconds, 1);
    if (!strcmp(c->shape, "square")) return fmod(t, c->seconds) < c->seconds / 2 ? c->a : c->b;
    return c->a;
}

/* Joules from 0 to t. */
static double energy(const card *c, double t) {
    if (!strcmp(c->shape, "ramp")) {
        double risen = fmin(t, c->seconds);
        return c->a * risen + (c->b - c->a) * risen * risen / (2 * c->seconds) + c->b * (t - risen);
    }
    if (!strcmp(c->shape, "square")) {
        double part = fmod(t, c->seconds), half = c->seconds / 2;
        double whole = floor(t / c->seconds) * half * (c->a + c->b);
        return whole + c->a * fmin(part, half) + c->b * fmax(part - half, 0);
    }
    return c->a * t;
}

/* Value of the rule of this kind that holds now; 0 where none does. */
static unsigned long long holds(const card *c, const char *function) {
    double t = now();
    for (int i = 0; i < c->n_rules; i++) {
        const rule *r = &c->rules[i];
        if (!strcmp(r->function, function) && t >= r->from && t < r->until) return r->value;
    }
    return 0;
}

static int refusal(const card *c, const char *function) {
    unsigned long long code;
    if (!initialized) return UNINITIALIZED;
    take(c->delay);
    while (c->hang >= 0 && now() >= c->hang) pause();
    if (c->lost[0] && !access(c->lost, F_OK)) return GPU_IS_LOST;
    code = holds(c, function);
    return code ? (int)code : (int)holds(c, "all");
}

#define REFUSE(c) do { int code = refusal(c, __func__); if (code) return code; } while (0)

static void read_line(const char *line) {
    card *c = n_cards ? &cards[n_cards - 1] : cards;
    rule *r = &c->rules[c->n_rules];
    double from, until;
    if (sscanf(line, "init %d", &init_code) == 1 || sscanf(line, "epoch %lf", &epoch) == 1) return;
    if (!strncmp(line, "card ", 5) && n_cards < CARDS) {
        c = &cards[n_cards++];
        memset(c, 0, sizeof *c);
        c->reset = c->hang = -1;
        c->unit = 1;
        sscanf(line, "card %95s", c->uuid);
    }
    if (sscanf(line, "power %15s %lf %lf %lf", c->shape, &c->a, &c->b, &c->seconds) >= 2)
        c->has_power = 1;
    if (sscanf(line, "temperature %lf %lf", &c->warmth, &c->warming) == 2) c->has_temperature = 1;
    if (sscanf(line, "counter %lf %lf %lf", &c->tick, &c->bits, &c->start) == 3) c->has_counter = 1;
    if (!strncmp(line, "flap ", 5)) {
        c->has_temperature = 1;
        c->n_flaps = sscanf(line, "flap %lf %lf %lf %lf %lf %lf %lf %lf", &c->flaps[0], &c->flaps[1],
                            &c->flaps[2], &c->flaps[3], &c->flaps[4], &c->flaps[5], &c->flaps[6],
                            &c->flaps[7]);
    }
    sscanf(line, "delay %lf", &c->delay);
    sscanf(line, "hang %lf", &c->hang);
    sscanf(line, "unit %lf", &c->unit);
    sscanf(line, "utilization %u", &c->utilization);
    sscanf(line, "clock %u", &c->clock);
    sscanf(line, "memory %llu", &c->memory);
    sscanf(line, "mig %95s", c->mig);
    sscanf(line, "reset %lf", &c->reset);
    sscanf(line, "lost %199s", c->lost);
    if (c->n_rules == RULES) return;
    if (sscanf(line, "fail %63s %llu %lf %lf", r->function, &r->value, &from, &until) == 4)
        ;
    else if (sscanf(line, "throttle %llu %lf %lf", &r->value, &from, &until) == 3)
        strcpy(r->function, "throttle");
    else if (sscanf(line, "process %llu %lf %lf", &r->value, &from, &until) == 3)
        strcpy(r->function, "process");
    else
        return;
    r->from = from;
    r->until = until;
    c->n_rules++;
}

int nvmlInitWithFlags(unsigned flags) {
    char line[256];
    FILE *script = fopen(getenv("NVML_SCRIPT") ? getenv("NVML_SCRIPT") : "", "r");
    (void)flags;
    n_cards = 0;
    init_code = SUCCESS;
    while (script && fgets(line, sizeof line, script)) read_line(line);
    if (script) fclose(script);
    initialized = init_code == SUCCESS;
    return init_code;
}

int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int code) { (void)code; return "scripted error"; }

int nvmlSystemGetDriverVersion(char *text, unsigned length) {
    snprintf(text, length, "stand-in");
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = n_cards;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, card **handle) {
    if ((int)index >= n_cards) return INVALID_ARGUMENT;
    *handle = &cards[index];
    return refusal(*handle, __func__);
}

int nvmlDeviceGetHandleByUUID(const char *uuid, card **handle) {
    for (int i = 0; i < n_cards; i++) {
        *handle = &cards[i];
        if (!strcmp(uuid, cards[i].uuid) || !strcmp(uuid, cards[i].mig)) return SUCCESS;
    }
    return NOT_FOUND;
}

/* The handle of an instance and of its card are the same here. */
int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(card *instance, card **handle) {
    *handle = instance;
    return SUCCESS;
}

int nvmlDeviceGetUUID(card *c, char *text, unsigned length) {
    REFUSE(c);
    snprintf(text, length, "%s", c->uuid);
    return SUCCESS;
}

int nvmlDeviceGetName(card *c, char *text, unsigned length) {
    REFUSE(c);
    snprintf(text, length, "Scripted Card");
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(card *c, unsigned long long total_free_used[3]) {
    REFUSE(c);
    total_free_used[0] = total_free_used[1] = c->memory;
    total_free_used[2] = 0;
    return SUCCESS;
}

int nvmlDeviceGetPowerUsage(card *c, unsigned *milliwatts) {
    REFUSE(c);
    if (!c->has_power) return NOT_SUPPORTED;
    *milliwatts = (unsigned)lround(power(c, now()) * 1000);
    return SUCCESS;
}

int nvmlDeviceGetTotalEnergyConsumption(card *c, unsigned long long *millijoules) {
    double t, joules;
    REFUSE(c);
    t = now();
    if (!c->has_counter) return NOT_SUPPORTED;
    if (c->tick > 0) t = floor(t / c->tick + 1e-9) * c->tick;
    joules = c->reset >= 0 && t >= c->reset ? energy(c, t) - energy(c, c->reset)
                                            : c->start + energy(c, t);
    *millijoules = (unsigned long long)fmod(joules * 1000 * c->unit, pow(2, c->bits));
    return SUCCESS;
}

int nvmlDeviceGetTemperature(card *c, int sensor, unsigned *celsius) {
    (void)sensor;
    REFUSE(c);
    if (!c->has_temperature) return NOT_SUPPORTED;
    *celsius = (unsigned)(c->n_flaps ? c->flaps[c->readings++ % c->n_flaps]
                                     : c->warmth + c->warming * now());
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(card *c, unsigned rates[2]) {
    REFUSE(c);
    rates[0] = c->utilization;
    rates[1] = 0;
    return SUCCESS;
}

int nvmlDeviceGetClockInfo(card *c, int type, unsigned *mhz) {
    (void)type;
    REFUSE(c);
    *mhz = c->clock;
    return SUCCESS;
}

int nvmlDeviceGetCurrentClocksEventReasons(card *c, unsigned long long *bits) {
    REFUSE(c);
    *bits = holds(c, "throttle");
    return SUCCESS;
}

typedef struct { unsigned pid; unsigned long long memory; unsigned instance, compute; } process;

int nvmlDeviceGetComputeRunningProcesses_v3(card *c, unsigned *count, process *list) {
    unsigned room = *count;
    double t = now();
    REFUSE(c);
    *count = 0;
    for (int i = 0; i < c->n_rules; i++) {
        const rule *r = &c->rules[i];
        if (strcmp(r->function, "process") || t < r->from || t >= r->until) continue;
        if (list && *count < room) list[*count] = (process){.pid = (unsigned)r->value};
        ++*count;
    }
    return *count > room ? INSUFFICIENT_SIZE : SUCCESS;
}
